// Package audit keeps the trail of who changed what through the API, from where
// and with which outcome.
//
// It promises that every entry names the one before by its hash, that an entry
// which was acknowledged is on the disk, and that a process killed in the middle
// of a write loses no acknowledged entry: what stands half-written is set aside,
// and the trail says so. The newest hash is kept in the store too, where other
// controllers have it, so that a trail which was rewritten as a whole, or cut at
// its end, is noticed (see [Verifier]). That hash only goes forward: a trail that a
// starting controller finds without what the store has the hash of goes on behind that
// hash, with an entry that says what is missing, and does not hold from then on.
//
// It never holds a secret: bodies are named by their SHA-256.
package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage/store"
)

// Entry is one thing that somebody did, or tried to do.
type Entry struct {
	// Sequence counts the entries of one controller's trail from 1.
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
	// Node is the controller that saw it.
	Node string `json:"node"`
	// Who is the person; Role is in which role, as far as one was decided on.
	Who  string `json:"who"`
	Role string `json:"role,omitempty"`
	// From is the address of the client, or "local" for the unix socket.
	From string `json:"from,omitempty"`
	Verb string `json:"verb"`
	// Resource is the plural of the kind with a subresource, or the name of a
	// function.
	Resource  string `json:"resource,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// Code is the HTTP status of the answer, Message what it said of a refusal.
	Code    int    `json:"code"`
	Message string `json:"message,omitempty"`
	DryRun  bool   `json:"dryRun,omitempty"`
	// Object is the SHA-256 of the object as it was stored, in hex.
	Object string `json:"object,omitempty"`
	// Previous is the hash of the entry before; empty for the first.
	Previous string `json:"previous"`
	// Hash is the SHA-256, in hex, of the entry's JSON without this field.
	Hash string `json:"hash"`
}

// digest is what Hash should be.
func (e Entry) digest() (string, error) {
	e.Hash = ""
	data, err := json.Marshal(e)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

const (
	// fileBytes is the size at which a trail goes on in a new file.
	fileBytes = 64 << 20
	// anchorEvery is how often the newest hash is kept in the store.
	anchorEvery = time.Second
	// mostWaiting bounds the entries that wait for the disk.
	mostWaiting = 4096
	// mostText cuts what is kept of each text: clients send names of any length.
	mostText = 1024
	// longestLine bounds an entry when a trail is read.
	longestLine = 64 << 10
)

// anchorKey is the store's key of the newest hash of a controller's trail.
func anchorKey(node string) string { return anchors + node }

const anchors = "audit/"

// Anchor is the newest hash of a trail that the store has.
type Anchor struct {
	Sequence uint64    `json:"sequence"`
	Hash     string    `json:"hash"`
	Time     time.Time `json:"time"`
}

// Config is what a Trail needs.
type Config struct {
	// Dir holds the files.
	Dir string
	// Node is the controller's name.
	Node string
	// Store keeps the anchor; nil keeps none.
	Store store.Store
	// Now says when entries were written; nil is this machine's clock.
	Now func() time.Time
	// Logger tells of a trail that is not whole; nil tells nobody.
	Logger *slog.Logger
}

// Trail is the audit trail of one controller. Its methods may be called at once.
type Trail struct {
	config Config
	queue  chan *waiting
	closed chan struct{}

	mu     sync.Mutex // guards the fields below
	file   *os.File
	size   int64
	last   Entry // newest on disk
	broken error // why nothing more can be written

	// Of Run alone.
	compared bool   // with what the store had when the trail was opened
	anchor   uint64 // the newest entry of which the store has the hash
}

// waiting is what one caller appends.
type waiting struct {
	entries []Entry
	done    chan error
}

// Open opens the trail in a folder, or begins one. A last line that was not
// written to its end is set aside in a file with the suffix .torn.
func Open(config Config) (*Trail, error) {
	if config.Dir == "" || config.Node == "" {
		return nil, errors.New("audit: needs a Dir and a Node")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	t := &Trail{config: config, queue: make(chan *waiting, mostWaiting), closed: make(chan struct{})}
	torn, err := t.resume()
	if err != nil {
		return nil, fmt.Errorf("open the audit trail in %s: %w", config.Dir, err)
	}
	if torn != "" {
		entry := Entry{Who: "system", Verb: "recover", Message: "a last line without an end was set aside in " + torn}
		if err := t.write([]*waiting{{entries: []Entry{entry}}}); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// files lists the trail's files in order.
func files(dir string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
	slices.Sort(found)
	return found, err
}

func fileName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("audit-%020d.jsonl", first))
}

// resume opens the newest file behind its last whole line.
func (t *Trail) resume() (torn string, err error) {
	found, err := files(t.config.Dir)
	if err != nil || len(found) == 0 {
		return "", err
	}
	newest := found[len(found)-1]
	data, err := os.ReadFile(newest)
	if err != nil {
		return "", err
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	if rest := data[len(whole):]; len(rest) > 0 {
		torn = newest + ".torn"
		if err := os.WriteFile(torn, rest, 0o600); err != nil {
			return "", err
		}
		if err := os.Truncate(newest, int64(len(whole))); err != nil {
			return "", err
		}
	}
	if len(whole) == 0 {
		// Nothing of the newest file was acknowledged: the one before has the end.
		if err := os.Remove(newest); err != nil || len(found) == 1 {
			return torn, err
		}
		_, err := t.resume()
		return torn, err
	}
	lines := bytes.Split(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &t.last); err != nil {
		return "", fmt.Errorf("%s: the last line is no entry (%w): `bocage audit verify` says where the trail breaks; move the folder away to begin a new one", newest, err)
	}
	if t.file, err = os.OpenFile(newest, os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return "", err
	}
	t.size = int64(len(whole))
	return torn, nil
}

// Run writes what is appended, and keeps the anchor, until ctx ends.
func (t *Trail) Run(ctx context.Context) error {
	defer close(t.closed)
	t.keepAnchor(ctx) // before anything new stands where something is missing
	tick := time.NewTicker(anchorEvery)
	defer tick.Stop()
	for {
		select {
		case first := <-t.queue:
			t.flush(first)
		case <-tick.C:
			t.keepAnchor(ctx)
		case <-ctx.Done():
			for len(t.queue) > 0 {
				t.flush(<-t.queue)
			}
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), anchorEvery)
			defer cancel()
			t.keepAnchor(last)
			return ctx.Err()
		}
	}
}

// flush writes an entry and all that wait behind it with one sync.
func (t *Trail) flush(first *waiting) {
	batch := []*waiting{first}
	for len(t.queue) > 0 && len(batch) < 256 {
		batch = append(batch, <-t.queue)
	}
	err := t.write(batch)
	for _, w := range batch {
		w.done <- err
	}
}

// Append adds entries, all or none, and returns once they are on the disk.
// Sequence, Time, Node and hashes are the trail's.
func (t *Trail) Append(ctx context.Context, entries ...Entry) error {
	entries = slices.Clone(entries)
	for i := range entries {
		e := &entries[i]
		for _, text := range []*string{&e.Who, &e.Role, &e.From, &e.Verb, &e.Resource, &e.Namespace, &e.Name, &e.Message, &e.Object} {
			*text = kept(*text)
		}
	}
	w := &waiting{entries: entries, done: make(chan error, 1)}
	select {
	case t.queue <- w:
	case <-t.closed:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-w.done:
		return err
	case <-t.closed:
		// It may have been written by the last round.
		select {
		case err := <-w.done:
			return err
		default:
			return errClosed
		}
	}
}

// kept is what is kept of a text: what was written can be read again as it was, and
// written as it is.
func kept(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), mostText)], "")
}

var errClosed = errors.New("the audit trail is closed")

// Fault says why nothing more can be written; nil while all is well. Changes
// should be refused meanwhile.
func (t *Trail) Fault() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.broken
}

// write puts entries on the disk, all or none. After an error the next call
// tries again from the last whole entry.
func (t *Trail) write(batch []*waiting) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []byte
	last := t.last
	for _, w := range batch {
		for _, e := range w.entries {
			e.Sequence, e.Previous, e.Node, e.Time = last.Sequence+1, last.Hash, t.config.Node, t.config.Now().UTC()
			hash, err := e.digest()
			if err != nil {
				return fmt.Errorf("write the audit trail: %w", err)
			}
			e.Hash = hash
			line, err := json.Marshal(e)
			if err != nil {
				return fmt.Errorf("write the audit trail: %w", err)
			}
			lines, last = append(append(lines, line...), '\n'), e
		}
	}
	if err := t.put(lines, t.last.Sequence+1); err != nil {
		t.broken = fmt.Errorf("the audit trail in %s cannot be written (%w): make room or mend the disk; changes are refused until then", t.config.Dir, err)
		return t.broken
	}
	t.last, t.size, t.broken = last, t.size+int64(len(lines)), nil
	return nil
}

func (t *Trail) put(lines []byte, first uint64) error {
	if t.file == nil || t.size >= fileBytes {
		if t.file != nil {
			if err := t.file.Close(); err != nil {
				return err
			}
		}
		file, err := os.OpenFile(fileName(t.config.Dir, first), os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
		if errors.Is(err, os.ErrExist) {
			// Left by an attempt that failed: nothing in it was acknowledged.
			file, err = os.OpenFile(fileName(t.config.Dir, first), os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
		}
		if err != nil {
			t.file = nil
			return err
		}
		t.file, t.size = file, 0
		if err := syncDir(t.config.Dir); err != nil {
			return err
		}
	}
	_, err := t.file.Write(lines)
	if err == nil {
		err = t.file.Sync()
	}
	if err != nil {
		// What stands half-written was not acknowledged.
		return errors.Join(err, t.file.Truncate(t.size))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// keepAnchor writes the newest hash into the store if it is newer. A store that
// does not answer gets it a moment later.
func (t *Trail) keepAnchor(ctx context.Context) {
	if t.config.Store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, anchorEvery)
	defer cancel()
	if !t.compared {
		if err := t.compare(ctx); err != nil {
			return
		}
		t.compared = true
	}
	t.mu.Lock()
	last := t.last
	t.mu.Unlock()
	if last.Sequence == t.anchor {
		return
	}
	value, err := json.Marshal(Anchor{Sequence: last.Sequence, Hash: last.Hash, Time: last.Time})
	if err != nil {
		return
	}
	if _, err := t.config.Store.Apply(ctx, store.Op{Key: anchorKey(t.config.Node), Value: value, IfWas: store.AnyRevision}); err != nil {
		return
	}
	t.anchor = last.Sequence
}

// compare looks whether the entry that the store has the hash of is in the trail. If it
// is not, whoever stopped the controller took it away, or the disk is another: the trail
// goes on behind that entry, so that what is missing can be seen for good.
func (t *Trail) compare(ctx context.Context) error {
	anchor, known, err := ReadAnchor(ctx, t.config.Store, t.config.Node)
	if err != nil || !known {
		return err
	}
	t.mu.Lock()
	last := t.last
	t.mu.Unlock()
	missing := ""
	if anchor.Sequence > last.Sequence {
		missing = fmt.Sprintf("entries %d to %d are missing: the store has the hash of entry %d", last.Sequence+1, anchor.Sequence, anchor.Sequence)
	} else if !t.holds(anchor) {
		missing = fmt.Sprintf("entry %d is not the one that the store has the hash of: the trail was rewritten, or begins behind it", anchor.Sequence)
	}
	if missing == "" {
		t.anchor = anchor.Sequence
		return nil
	}
	t.config.Logger.ErrorContext(ctx, "the audit trail is not whole", slog.String("dir", t.config.Dir), slog.String("missing", missing))
	goOn := func(behind Entry) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.last = behind
	}
	goOn(Entry{Sequence: max(anchor.Sequence, last.Sequence), Hash: anchor.Hash})
	err = t.write([]*waiting{{entries: []Entry{{Who: gapWho, Verb: gapVerb, Resource: "audit", Message: missing}}}})
	if err != nil {
		goOn(last)
	}
	return err
}

// An entry of these, from nowhere, says that what was before it was not there: what
// clients ask for always comes from somewhere.
const (
	gapWho  = "system"
	gapVerb = "miss"
)

func (e Entry) isGap() bool { return e.Who == gapWho && e.Verb == gapVerb && e.From == "" }

// holds says whether the trail has the entry of an anchor, or begins right behind it.
func (t *Trail) holds(anchor Anchor) bool {
	found := false
	err := ReadDir(t.config.Dir, anchor.Sequence, func(e Entry) error {
		found = e.Sequence == anchor.Sequence && e.Hash == anchor.Hash || e.Sequence == anchor.Sequence+1 && e.Previous == anchor.Hash
		return errEnough
	})
	return found && errors.Is(err, errEnough)
}

// Read visits the entries from a sequence number on, in order, as far as they were
// acknowledged by now.
func (t *Trail) Read(from uint64, visit func(Entry) error) error {
	t.mu.Lock()
	last, more, err := t.last.Sequence, false, error(nil)
	if t.file != nil {
		var info os.FileInfo
		if info, err = t.file.Stat(); err == nil {
			more = info.Size() != t.size
		}
	}
	t.mu.Unlock()
	if err != nil {
		return err
	}
	if from <= last || last == 0 {
		err = ReadDir(t.config.Dir, from, func(e Entry) error {
			if err := visit(e); err != nil {
				return err
			}
			if e.Sequence >= last {
				return errEnough // what comes next may be half-written still
			}
			return nil
		})
	}
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if more {
		return &Break{At: fmt.Sprintf("entry %d", last), What: "is the last that this controller wrote, and its file does not end there: somebody else wrote into it"}
	}
	return nil
}

var errEnough = errors.New("enough")

// ReadDir visits the entries in a folder from a sequence number on, in order.
func ReadDir(dir string, from uint64, visit func(Entry) error) error {
	found, err := files(dir)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%s holds no audit trail: its files are called audit-*.jsonl", dir)
	}
	for i, name := range found {
		if i+1 < len(found) && fileName(dir, from) >= found[i+1] {
			continue // the next file begins no later
		}
		if err := readFile(name, from, visit); err != nil {
			return err
		}
	}
	return nil
}

func readFile(name string, from uint64, visit func(Entry) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return read(file, name, from, visit)
}

func read(r io.Reader, name string, from uint64, visit func(Entry) error) error {
	lines := bufio.NewReaderSize(r, longestLine)
	for n := 1; ; n++ {
		line, err := lines.ReadSlice('\n')
		at := fmt.Sprintf("%s:%d", name, n)
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return &Break{At: at, What: "has no end: it was cut, or its controller is writing it right now"}
		case errors.Is(err, bufio.ErrBufferFull):
			return &Break{At: at, What: fmt.Sprintf("is no entry: it is longer than %d bytes", longestLine)}
		case err != nil:
			return fmt.Errorf("read %s: %w", name, err)
		}
		e, err := parse(line[:len(line)-1])
		if err != nil {
			return &Break{At: at, What: err.Error()}
		}
		if e.Sequence < from {
			continue
		}
		if err := visit(e); err != nil {
			return err
		}
	}
}

// parse reads a line. The hash is over what an entry says; so that it is over every
// byte, only the one line that says it is taken.
func parse(line []byte) (Entry, error) {
	var e Entry
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		return e, fmt.Errorf("is no entry: %w", err)
	}
	written, err := json.Marshal(e)
	if err != nil {
		return e, fmt.Errorf("is no entry: %w", err)
	}
	if !bytes.Equal(written, line) {
		return e, errors.New("is not what was written: it says the same as an entry in another way")
	}
	return e, nil
}

// Close closes the file. Run has to have ended.
func (t *Trail) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil {
		return nil
	}
	err := t.file.Close()
	t.file = nil
	return err
}
