package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"bocage.dev/bocage/store"
)

// Break is a place at which a trail does not hold.
type Break struct {
	At   string // file:line, or entry N
	What string
}

func (b *Break) Error() string { return b.At + " " + b.What }

// Summary is what a whole trail is.
type Summary struct {
	Entries uint64 `json:"entries"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	// Hash is that of the last entry.
	Hash string `json:"hash"`
}

// Verifier checks the entries of one trail as they come, in order.
type Verifier struct {
	// Anchors are hashes that somebody else kept, by sequence number.
	Anchors map[uint64]string
	// Has is the hash of an entry that has to be there, as somebody noted it; empty
	// asks for none.
	Has string

	summary Summary
	has     bool
	before  string // the hash that the first entry names
}

// Next checks one entry against those before it. Its error is a *Break.
func (v *Verifier) Next(e Entry) error {
	at := fmt.Sprintf("entry %d", e.Sequence)
	hash, err := e.digest()
	switch {
	case err != nil:
		return err
	case hash != e.Hash:
		return &Break{at, "is not what was written: its hash is another"}
	case e.isGap():
		return &Break{at, fmt.Sprintf("says what its controller found when it began: %s. What came after is checked from entry %d on", e.Message, e.Sequence+1)}
	case v.summary.Entries > 0 && e.Sequence != v.summary.Last+1:
		return &Break{at, fmt.Sprintf("follows entry %d: what was between is missing", v.summary.Last)}
	case v.summary.Entries > 0 && e.Previous != v.summary.Hash:
		return &Break{at, "names another entry before it than the one that is there"}
	case v.summary.Entries == 0 && e.Sequence == 1 && e.Previous != "":
		return &Break{at, "is the first and names one before it"}
	}
	if kept, known := v.Anchors[e.Sequence]; known && kept != e.Hash {
		return &Break{at, "is not the one that the store has the hash of: the trail was rewritten"}
	}
	if v.summary.Entries == 0 {
		v.summary.First, v.before = e.Sequence, e.Previous
	}
	v.has = v.has || e.Hash == v.Has
	v.summary.Entries++
	v.summary.Last, v.summary.Hash = e.Sequence, e.Hash
	return nil
}

// End says what the trail was, or that its end is missing, or that it begins behind
// what the store knows of it.
func (v *Verifier) End() (Summary, error) {
	if v.Has != "" && !v.has {
		return v.summary, &Break{"entry", fmt.Sprintf("with the hash %s is missing: the trail ends at entry %d", v.Has, v.summary.Last)}
	}
	for sequence, hash := range v.Anchors {
		switch {
		case sequence+1 == v.summary.First && hash != v.before:
			return v.summary, &Break{fmt.Sprintf("entry %d", v.summary.First), "names another entry before it than the one that the store has the hash of: the trail was rewritten"}
		case sequence+1 < v.summary.First:
			return v.summary, &Break{fmt.Sprintf("entry %d", v.summary.First), fmt.Sprintf("is the first, and the last that the store has the hash of is entry %d: what was between is missing", sequence)}
		case sequence > v.summary.Last:
			return v.summary, &Break{fmt.Sprintf("entry %d", sequence), fmt.Sprintf("is missing: the store has its hash, and the trail ends at entry %d", v.summary.Last)}
		}
	}
	return v.summary, nil
}

// Verify checks the trail in a folder, from a sequence number on.
func Verify(dir string, from uint64, v *Verifier) (Summary, error) {
	if err := ReadDir(dir, from, v.Next); err != nil {
		return v.summary, err
	}
	return v.End()
}

// ReadAnchor reads what the store has of a controller's trail; false if nothing.
func ReadAnchor(ctx context.Context, s store.Store, node string) (Anchor, bool, error) {
	entry, err := s.Get(ctx, anchorKey(node))
	if errors.Is(err, store.ErrNotFound) {
		return Anchor{}, false, nil
	}
	if err != nil {
		return Anchor{}, false, err
	}
	var a Anchor
	if err := json.Unmarshal(entry.Value, &a); err != nil {
		return Anchor{}, false, fmt.Errorf("read %s: %w", anchorKey(node), err)
	}
	return a, true, nil
}

// ReadAnchors reads what the store has of all controllers' trails, by their names.
func ReadAnchors(ctx context.Context, s store.Store) (map[string]Anchor, error) {
	entries, _, err := s.List(ctx, anchors, "", 0, 0)
	if err != nil {
		return nil, err
	}
	found := make(map[string]Anchor, len(entries))
	for _, entry := range entries {
		var a Anchor
		if err := json.Unmarshal(entry.Value, &a); err != nil {
			return nil, fmt.Errorf("read %s: %w", entry.Key, err)
		}
		found[entry.Key[len(anchors):]] = a
	}
	return found, nil
}
