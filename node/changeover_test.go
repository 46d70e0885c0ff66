package node

import (
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

func TestUnansweredLeaves(t *testing.T) {
	var u unanswered
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	var left []time.Duration
	for second := range 200 {
		at := now.Add(time.Duration(second) * time.Second)
		if u.asked(at); u.leaves(at) {
			left = append(left, at.Sub(now))
		}
	}
	want := []time.Duration{3, 10, 23, 48, 97, 158}
	for i := range want {
		if want[i] *= time.Second; i >= len(left) || left[i] != want[i] {
			t.Fatalf("it leaves after %v, want %v", left, want)
		}
	}
}

func TestIsAddress(t *testing.T) {
	for address, want := range map[string]bool{"10.0.0.1:4222": true, "[fd00::1]:4222": true, "controllers.example:4222": false, "10.0.0.1": false} {
		if isAddress(address) != want {
			t.Errorf("%s: %v", address, !want)
		}
	}
}

// TestProofs: what an agent shows is what controllers signed, however it came, and what
// others signed proves nothing.
func TestProofs(t *testing.T) {
	s := newShared(t)
	c, _ := s.start(t, s.config(t, "c1", "1", 0))
	signed := func(kind string, word any) []byte {
		payload, err := json.Marshal(word)
		must(t, err)
		envelope, err := c.sign(kind, payload)
		must(t, err)
		return envelope
	}
	first := generation(7, time.Time{})
	first.Host = "h1"
	shelf := &shelf{dir: t.TempDir(), logger: slog.New(slog.DiscardHandler)}
	if got := c.proved("h1", shelf.proofs()); got != 0 {
		t.Errorf("nothing proves %d", got)
	}
	shelf.take(first, signed(bocage.SignedRuleset, first))
	if got := c.proved("h1", shelf.proofs()); got != 7 {
		t.Errorf("a ruleset proves %d", got)
	}
	if got := c.proved("h2", shelf.proofs()); got != 0 {
		t.Errorf("that of another host proves %d", got)
	}
	shelf.confirm(bocage.Confirmation{Generation: 9}, signed(bocage.SignedConfirm, bocage.Confirmation{Generation: 9}))
	if got := c.proved("h1", shelf.proofs()); got != 9 {
		t.Errorf("with a confirmation it proves %d", got)
	}
	for n := uint64(10); n < 13; n++ {
		next := generation(n, time.Time{}, bocage.IdentityFirst+bocage.Identity(n))
		next.Host = "h1"
		next.Digest = next.ContentDigest()
		shelf.settle()
		before := shelf.rulesets[len(shelf.rulesets)-1].ruleset()
		a := amendment(t, before, next)
		must(t, shelf.amend(a, signed(bocage.SignedAmendment, a), time.Now()))
		if got := c.proved("h1", shelf.proofs()); got != n {
			t.Errorf("an amendment proves %d, not %d", got, n)
		}
	}
	later := &controllerProcess{authority: c.authority, clock: newSiteClock(func() (time.Time, time.Duration) {
		return time.Now().Round(0).Add(48 * time.Hour), time.Hour
	})}
	if got := later.proved("h1", shelf.proofs()); got != 12 {
		t.Errorf("when its signer's certificate has ended it proves %d", got)
	}
	forged := newSigner(t)
	if got := c.proved("h1", [][]byte{forged.sign(bocage.SignedConfirm, bocage.Confirmation{Generation: 99}), []byte("no envelope")}); got != 0 {
		t.Errorf("what somebody else signed proves %d", got)
	}
}

func TestNumberedIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), numberedFile)
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	if got := readNumbered(path, logger); got != 0 || log.Len() > 0 {
		t.Errorf("without a file: %d, %s", got, log.String())
	}
	must(t, writeFile(path, []byte("1234\n"), 0o600))
	if got := readNumbered(path, logger); got != 1234 || log.Len() > 0 {
		t.Errorf("it reads %d, %s", got, log.String())
	}
	must(t, writeFile(path, []byte("12x4"), 0o600))
	if got := readNumbered(path, logger); got != 0 || !strings.Contains(log.String(), "which generations were numbered is not known") {
		t.Errorf("it reads %d, %s", got, log.String())
	}
}
