package suricata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// Patience with the engine where it reads signatures: 30,000 of them took 104 s
// on a machine of two busy cores.
const (
	checkPatience  = 4 * time.Minute
	tenantPatience = 4 * time.Minute
	answerPatience = 5 * time.Second // of commands that change nothing
)

// maxEngineLog bounds what is read of the engine's log at a time.
const maxEngineLog = 8 << 20

// Load makes these the profiles, all of them or, with an error, none. Signatures
// that are new are first tried out in an engine of their own; a [SignatureError]
// says what it refuses. Then the running engine takes the changes one profile at
// a time, with traffic flowing, and each is verified.
//
// While the engine is down Load succeeds as soon as the signatures are tried
// out: the engine starts with them.
func (e *Engine) Load(profiles []bocage.Profile) error {
	e.loading.Lock()
	defer e.loading.Unlock()
	if err := checkProfiles(profiles); err != nil {
		return err
	}
	wanted, err := e.prepare(profiles)
	if err == nil {
		err = e.change(wanted)
	}
	return errors.Join(err, e.sweep())
}

// prepare writes the files of every profile and tries out new signatures.
func (e *Engine) prepare(profiles []bocage.Profile) ([]profile, error) {
	before := e.snapshot()
	wanted := make([]profile, 0, len(profiles))
	for _, p := range profiles {
		signatures := normalize(p.Signatures)
		n := profile{Number: p.Number, Name: p.Name, Digest: digest(signatures)}
		if err := e.writeProfile(n, signatures); err != nil {
			return nil, fmt.Errorf("inspection profile %q: %w", p.Name, err)
		}
		count, ok := before.known(n.Digest)
		if !ok {
			var err error
			if count, err = e.tryOut(n); err != nil {
				return nil, err
			}
		}
		n.Count = count
		wanted = append(wanted, n)
	}
	sortProfiles(wanted)
	return wanted, nil
}

func (e *Engine) writeProfile(p profile, signatures []byte) error {
	tenant, err := renderTenant(e.layout, p)
	if err != nil {
		return err
	}
	return errors.Join(
		writeFor(e.uid, e.layout.profile(p.Number, p.Digest, kindRules), signatures),
		writeFor(e.uid, e.layout.profile(p.Number, p.Digest, kindTenant), tenant))
}

// tryOut has an engine without traffic read the signatures, and counts them.
func (e *Engine) tryOut(p profile) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkPatience)
	defer cancel()
	rules := e.layout.profile(p.Number, p.Digest, kindRules)
	argv := confine(e.uid, "", fullLogs*e.cfg.MaxLog, e.program, "-T", "-c", e.layout.check(), "-S", rules, "-l", e.layout.log())
	said := &bounded{limit: maxEngineLog}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", engineEnvironment(), said, said
	cmd.WaitDelay = time.Second
	err := host.Start(e.cfg.Namespace, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("inspection profile %q: reading its signatures took longer than %s: split it, or remove the dearest", p.Name, checkPatience)
	}
	log := readEngineLog(said.Bytes())
	if _, refused := errors.AsType[*exec.ExitError](err); refused || err == nil && len(log.Faults) > 0 {
		return 0, log.refusal(p.Name)
	}
	if err != nil {
		return 0, fmt.Errorf("inspection profile %q: try out its signatures: %w", p.Name, err)
	}
	loaded := 0
	for _, count := range log.Counts {
		loaded += count[0]
	}
	if log.Empty || loaded == 0 {
		return 0, &SignatureError{Profile: p.Name, Faults: []SignatureFault{{
			Words: "holds no signature: a profile without any inspects nothing"}}}
	}
	return loaded, nil
}

// change commits to the profiles and brings them to the running engine.
func (e *Engine) change(wanted []profile) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	before := e.snapshot()
	if slices.Equal(before.Wanted, wanted) && len(before.plan()) == 0 {
		return nil
	}
	if err := e.want(wanted); err != nil {
		return fmt.Errorf("load inspection profiles: %w", err)
	}
	err := e.converge()
	if err == nil {
		return nil
	}
	if errors.Is(err, errUnreachable) {
		e.log.Warn("inspection profiles wait for the engine", slog.Any("error", err))
		return nil
	}
	// The engine refuses what its twin accepted: go back to what it had.
	if back := errors.Join(e.want(before.Wanted), e.converge()); back != nil {
		err = errors.Join(err, fmt.Errorf("go back to the profiles before: %w", back))
	}
	return fmt.Errorf("load inspection profiles: %w", err)
}

// want records what should be loaded, first for the engine's next start: that
// then needs no room on disk.
func (e *Engine) want(wanted []profile) error {
	if err := e.writeConfiguration(wanted); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.ledger
	next.Wanted = wanted
	if err := next.save(e.layout.ledger()); err != nil {
		return err
	}
	e.ledger = next
	e.publishNames()
	return nil
}

// note records what became of a tenant of the running engine; known false means
// that it is not there.
func (e *Engine) note(number uint16, digest string, known bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ledger.Live = maps.Clone(e.ledger.Live)
	if known {
		e.ledger.Live[number] = digest
	} else {
		delete(e.ledger.Live, number)
	}
	return e.ledger.save(e.layout.ledger())
}

// converge brings the running engine's tenants to what is wanted; applying is
// held. Each step is noted before and after, so that an agent that is killed
// half-way knows what it does not know.
func (e *Engine) converge() error {
	now := e.snapshot()
	steps := now.plan()
	if len(steps) == 0 {
		return nil
	}
	if p := e.running(); p == nil || !p.alive() {
		return fmt.Errorf("%w: it is not running", errUnreachable)
	}
	engine, err := dial(context.Background(), e.layout.socket(), answerPatience)
	if err != nil {
		return err
	}
	defer engine.close()
	for _, s := range steps {
		if err := e.note(s.profile.Number, unsure, true); err != nil {
			return err
		}
		if err := e.take(engine, s); err != nil {
			return fmt.Errorf("%s profile %d %q: %w", s.verb, s.profile.Number, s.profile.Name, err)
		}
		if err := e.note(s.profile.Number, s.profile.Digest, s.verb != stepRemove); err != nil {
			return err
		}
		e.log.Info("inspection profile changed", slog.String("change", string(s.verb)),
			slog.Int("number", int(s.profile.Number)), slog.String("profile", s.profile.Name), slog.Int("signatures", s.profile.Count))
	}
	return nil
}

// take makes one step.
func (e *Engine) take(engine *commander, s step) error {
	number := s.profile.Number
	file := tenantFile{number, e.layout.profile(number, s.profile.Digest, kindTenant)}
	handler := tenantHandler{number, "vlan", number}
	since := e.engineLogSize()
	switch s.verb {
	case stepRemove:
		_, err := engine.run("unregister-tenant-handler", handler, tenantPatience)
		if err == nil || !errors.Is(err, errUnreachable) { // a tenant without handler goes too
			_, err = engine.run("unregister-tenant", tenantID{number}, tenantPatience)
		}
		return err
	case stepChange:
		if _, err := engine.run("reload-tenant", file, tenantPatience); err != nil {
			return err
		}
	case stepAdd:
		if _, err := engine.run("register-tenant", file, tenantPatience); err != nil {
			return err
		}
	case stepSettle:
		_, err := engine.run("reload-tenant", file, tenantPatience)
		if err != nil && !errors.Is(err, errUnreachable) {
			since = e.engineLogSize()
			_, err = engine.run("register-tenant", file, tenantPatience)
		}
		if err != nil {
			return err
		}
	}
	if err := e.verify(s.profile, since); err != nil {
		return err
	}
	if s.verb == stepChange {
		return nil
	}
	// Only now do packets meet it.
	_, err := engine.run("register-tenant-handler", handler, tenantPatience)
	if s.verb == stepSettle && err != nil && !errors.Is(err, errUnreachable) {
		return nil // it had one
	}
	return err
}

// verify reads in the engine's log that every signature was loaded: to the
// socket, a tenant of which 96 of 100 failed is a success.
func (e *Engine) verify(p profile, since int64) error {
	log, err := e.engineLogSince(since)
	if err != nil {
		return err
	}
	said := readEngineLog(log)
	if len(said.Counts) == 0 {
		return fmt.Errorf("the engine does not say how many signatures it loaded")
	}
	if count := said.Counts[len(said.Counts)-1]; count[1] != 0 || count[0] != p.Count {
		return fmt.Errorf("the engine loaded %d signatures of %d: %w", count[0], p.Count, said.refusal(p.Name))
	}
	return nil
}

func (e *Engine) engineLogSize() int64 {
	info, err := os.Lstat(e.layout.engineLog())
	if err != nil {
		return 0
	}
	return info.Size()
}

// engineLogSince reads what the engine has said from an offset on. The directory
// belongs to the engine, so a link in it is not followed.
func (e *Engine) engineLogSince(offset int64) ([]byte, error) {
	f, err := os.OpenFile(e.layout.engineLog(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read the engine's log: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, offset, maxEngineLog))
	if err != nil {
		return nil, fmt.Errorf("read the engine's log: %w", err)
	}
	return data, nil
}

// sweep removes the files of profiles that are neither wanted nor loaded.
func (e *Engine) sweep() error {
	now := e.snapshot()
	keep := map[string]bool{}
	note := func(number uint16, digest string) {
		keep[e.layout.profile(number, digest, kindRules)] = true
		keep[e.layout.profile(number, digest, kindTenant)] = true
	}
	for _, p := range now.Wanted {
		note(p.Number, p.Digest)
	}
	for number, digest := range now.Live {
		note(number, digest)
	}
	entries, err := os.ReadDir(e.layout.etc())
	if err != nil {
		return fmt.Errorf("remove old profiles: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(e.layout.etc(), entry.Name())
		if strings.HasPrefix(entry.Name(), "profile-") && !keep[path] {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// verifyAll asks a started engine whether the profiles that it began with are whole.
func (e *Engine) verifyAll(engine *commander, wanted []profile) error {
	answer, err := engine.run("ruleset-stats", nil, answerPatience)
	if err != nil {
		return err
	}
	var counts []tenantCount
	if err := json.Unmarshal(answer, &counts); err != nil {
		return fmt.Errorf("read the engine's counts of signatures: %w", err)
	}
	for _, p := range wanted {
		i := slices.IndexFunc(counts, func(c tenantCount) bool { return c.ID == int(p.Number) })
		if i < 0 {
			return fmt.Errorf("the engine started without profile %d %q", p.Number, p.Name)
		}
		if c := counts[i]; c.Failed != 0 || c.Loaded != p.Count {
			return fmt.Errorf("the engine started with %d signatures of %d of profile %q", c.Loaded, p.Count, p.Name)
		}
	}
	return nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(data []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		b.Buffer.Write(data[:min(room, len(data))])
	}
	return len(data), nil
}
