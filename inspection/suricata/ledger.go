package suricata

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// profile is an inspection profile as this agent keeps it.
type profile struct {
	Number uint16 `json:"number"` // VLAN id and tenant id
	Name   string `json:"name"`
	Digest string `json:"digest"` // names the files of its signatures
	Count  int    `json:"count"`  // of its signatures, as the engine counts
}

// ledger is what should be loaded and what is. It is kept in a file, so that an
// agent that starts again knows both without asking anyone.
type ledger struct {
	Wanted []profile `json:"wanted"` // sorted by number
	// Engine is the process that Live is about.
	Engine processID `json:"engine"`
	// Live has the digest of each tenant of the engine; unsure while a command
	// about it is under way.
	Live map[uint16]string `json:"live"`
}

// unsure stands for the digest of a tenant that may or may not be there.
const unsure = ""

func readLedger(path string) (ledger, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ledger{}, nil
	}
	if err != nil {
		return ledger{}, err
	}
	var l ledger
	if err := json.Unmarshal(data, &l); err != nil {
		return ledger{}, fmt.Errorf("read %s: %w", path, err)
	}
	return l, nil
}

func (l *ledger) save(path string) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return replace(path, data, nil)
}

// started notes an engine that began with everything that is wanted.
func (l *ledger) started(id processID) {
	l.Engine, l.Live = id, make(map[uint16]string, len(l.Wanted))
	for _, p := range l.Wanted {
		l.Live[p.Number] = p.Digest
	}
}

// found notes an engine that was there already. If the ledger is about another
// one, nothing is known of this one's tenants.
func (l *ledger) found(id processID) {
	if l.Engine == id && l.Live != nil {
		return
	}
	l.started(id)
	for number := range l.Live {
		l.Live[number] = unsure
	}
}

// names maps numbers to the names of profiles.
func (l *ledger) names() map[uint16]string {
	names := make(map[uint16]string, len(l.Wanted))
	for _, p := range l.Wanted {
		names[p.Number] = p.Name
	}
	return names
}

// known returns the count of signatures that the engine has accepted before.
func (l *ledger) known(digest string) (count int, ok bool) {
	i := slices.IndexFunc(l.Wanted, func(p profile) bool { return p.Digest == digest })
	if i < 0 {
		return 0, false
	}
	return l.Wanted[i].Count, true
}

// step is one change of the engine's tenants.
type step struct {
	verb    verb
	profile profile // its number only, where it is removed
}

type verb string

const (
	stepAdd    verb = "add"
	stepChange verb = "change"
	stepSettle verb = "settle" // add or change: nobody knows which
	stepRemove verb = "remove"
)

// plan lists what brings the engine's tenants to what is wanted, by number;
// removals last.
func (l *ledger) plan() []step {
	var steps []step
	wanted := map[uint16]bool{}
	for _, p := range l.Wanted {
		wanted[p.Number] = true
		switch live, ok := l.Live[p.Number]; {
		case !ok:
			steps = append(steps, step{stepAdd, p})
		case live == unsure:
			steps = append(steps, step{stepSettle, p})
		case live != p.Digest:
			steps = append(steps, step{stepChange, p})
		}
	}
	for _, number := range slices.Sorted(maps.Keys(l.Live)) {
		if !wanted[number] {
			steps = append(steps, step{stepRemove, profile{Number: number}})
		}
	}
	return steps
}

func sortProfiles(profiles []profile) {
	slices.SortFunc(profiles, func(a, b profile) int { return cmp.Compare(a.Number, b.Number) })
}
