package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
)

// Files of a shelf. Older rulesets lie beside the newest as ruleset-GENERATION.signed,
// amendments of either in ruleset-GENERATION.amendments.
const (
	newestFile  = "ruleset.signed"
	confirmFile = "ruleset.confirm" // the last confirmation, signed
	leftFile    = "ruleset.left"    // the generation that the agent went back from
)

// mostUnconfirmed bounds the rulesets that are kept because a confirmation may
// still come for them.
const mostUnconfirmed = 8

// shelf keeps an agent's rulesets across restarts, as the controllers signed them:
// the newest that was taken and, while that may have to be gone back from, those
// before it. What lies on it says at any moment which one is to be enforced; no
// controller need be there, nor the process that took it: the kernel goes back by
// itself, and the shelf follows it (see rulesetSource.due).
//
// What is gone back to keeps what it refused, and the refusals of what is left
// come along (Ruleset.WithRefusals): a quarantine is not lost. Whatever else the
// newer one tightened is: controllers that are there send it again at once, in a
// generation of its own. Exceptions and responses end in either by themselves.
type shelf struct {
	dir    string
	logger *slog.Logger
	// rulesets are in the order of their generations. While the last one counts as
	// not confirmed, the first is one that stays, if there ever was one.
	rulesets  []*kept
	confirmed uint64 // every generation up to it stays
	left      uint64 // generation that the agent went back from: the last one's, or 0
	series    uint64 // generation of the whole ruleset that was taken last
	journal   journal
}

// kept is one ruleset on the shelf.
type kept struct {
	generation uint64
	confirmBy  time.Time
	series     uint64            // generation of the whole ruleset that it, or what it amends, came as
	amendment  *bocage.Amendment // by which it came; nil: whole
	at         int64             // where that is in the journal of the series
	ruleset    func() *bocage.Ruleset
}

func keptWhole(rs *bocage.Ruleset) *kept {
	return &kept{generation: rs.Generation, confirmBy: rs.ConfirmBy, series: rs.Generation, ruleset: func() *bocage.Ruleset { return rs }}
}

// openShelf reads what the last process kept. It is verified like what comes from
// the network; damaged files count as absent.
func openShelf(dir string, credentials *credentials, host string, logger *slog.Logger) *shelf {
	s := &shelf{dir: dir, logger: logger}
	newest, err := s.read(newestFile, credentials.bundle, host)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			logger.Warn("the kept ruleset is of no use: waiting for a controller", "error", err)
		}
		return s
	}
	s.readConfirmation(credentials.bundle)
	// Before what it is about, since what was left decides what may be let go.
	text, err := os.ReadFile(filepath.Join(dir, leftFile))
	if left, parse := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil && parse == nil {
		s.left = left
	}
	for _, path := range s.older() {
		ruleset, err := s.read(filepath.Base(path), credentials.bundle, host)
		if err != nil {
			logger.Warn("a kept ruleset is of no use", "path", path, "error", err)
			continue
		}
		series, _ := s.readSeries(ruleset, credentials.bundle, newest.Generation)
		s.rulesets = append(s.rulesets, series...)
	}
	slices.SortFunc(s.rulesets, func(a, b *kept) int { return cmp.Compare(a.generation, b.generation) })
	s.series = newest.Generation
	var series []*kept
	series, s.journal = s.readSeries(newest, credentials.bundle, math.MaxUint64)
	s.rulesets = append(s.rulesets, series...)
	if s.left != s.newest() {
		s.left = 0
	}
	s.prune()
	return s
}

func (s *shelf) read(name string, bundle *identity.Bundle, host string) (*bocage.Ruleset, error) {
	envelope, taken, err := s.envelope(name)
	if err != nil {
		return nil, err
	}
	// The signer's certificate may be over by now: what counts is that it was good
	// when the ruleset was taken.
	return openRuleset(bundle, bocage.SignedRuleset, envelope, host, taken)
}

func (s *shelf) envelope(name string) ([]byte, time.Time, error) {
	path := filepath.Join(s.dir, name)
	envelope, err := os.ReadFile(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	return envelope, info.ModTime(), nil
}

func (s *shelf) readConfirmation(bundle *identity.Bundle) {
	envelope, taken, err := s.envelope(confirmFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var confirmation bocage.Confirmation
	if err == nil {
		confirmation, err = openConfirmation(bundle, envelope, taken)
	}
	if err != nil {
		s.logger.Warn("the kept confirmation is of no use", "error", err)
		return
	}
	s.confirmed = confirmation.Generation
}

// older lists the files of rulesets before the newest.
func (s *shelf) older() []string {
	paths, err := filepath.Glob(filepath.Join(s.dir, "ruleset-*.signed"))
	if err != nil {
		s.logger.Warn("list kept rulesets", "error", err)
	}
	return paths
}

func olderFile(generation uint64) string { return fmt.Sprintf("ruleset-%d.signed", generation) }

// newest is the highest generation that the agent ever took; 0 before any.
func (s *shelf) newest() uint64 {
	if len(s.rulesets) == 0 {
		return 0
	}
	return s.rulesets[len(s.rulesets)-1].generation
}

func (s *shelf) stays(k *kept) bool {
	if k.generation == s.left {
		return false
	}
	return k.confirmBy.IsZero() || k.generation <= s.confirmed
}

// stands is which ruleset is to be enforced at a moment, and whether that means to
// go back. Nil: there is none. Where there is nothing to go back to, the newest stands.
func (s *shelf) stands(now time.Time) (k *kept, back bool) {
	if len(s.rulesets) == 0 {
		return nil, false
	}
	before, newest := s.rulesets[:len(s.rulesets)-1], s.rulesets[len(s.rulesets)-1]
	if s.stays(newest) || s.left != newest.generation && now.Before(newest.confirmBy) {
		return newest, false
	}
	for _, k := range slices.Backward(before) {
		if s.stays(k) {
			return k, true
		}
	}
	return newest, false
}

// standing is the ruleset itself: what is gone back to has the refusals of what is
// left.
func (s *shelf) standing(now time.Time) (ruleset *bocage.Ruleset, back bool) {
	k, back := s.stands(now)
	switch {
	case k == nil:
		return nil, false
	case back:
		return k.ruleset().WithRefusals(s.rulesets[len(s.rulesets)-1].ruleset()), true
	}
	return k.ruleset(), false
}

// deadline is when the newest ruleset is to be gone back from; zero: never.
func (s *shelf) deadline() time.Time {
	if len(s.rulesets) < 2 {
		return time.Time{}
	}
	newest := s.rulesets[len(s.rulesets)-1]
	if s.stays(newest) || newest.generation == s.left {
		return time.Time{}
	}
	return newest.confirmBy
}

// take puts a newer ruleset on the shelf.
func (s *shelf) take(ruleset *bocage.Ruleset, envelope []byte) {
	if n := len(s.rulesets); n > 0 && s.rulesets[n-1].generation == s.left {
		// Nobody goes back to what was left.
		if left := s.rulesets[n-1]; left.amendment != nil {
			s.cutJournal(left.at)
		}
		s.rulesets = s.rulesets[:n-1]
	}
	if slices.ContainsFunc(s.rulesets, func(k *kept) bool { return k.series == s.series }) {
		if err := os.Link(filepath.Join(s.dir, newestFile), filepath.Join(s.dir, olderFile(s.series))); err != nil && !errors.Is(err, fs.ErrExist) {
			s.logger.Warn("keep the ruleset before for a way back: after a restart there is none", "error", err)
		}
	}
	s.left = 0
	s.rulesets = append(s.rulesets, keptWhole(ruleset))
	s.series, s.journal = ruleset.Generation, journal{}
	s.remove(journalFile(s.series)) // of nothing that is kept
	if err := writeFile(filepath.Join(s.dir, newestFile), envelope, 0o600); err != nil {
		s.logger.Warn("keep the ruleset for the next start", "error", err)
	}
	s.remove(leftFile)
	s.prune()
}

// confirm notes that every generation up to one stays. What was left stays left.
func (s *shelf) confirm(confirmation bocage.Confirmation, envelope []byte) {
	if confirmation.Generation <= s.confirmed {
		return
	}
	s.confirmed = confirmation.Generation
	if err := writeFile(filepath.Join(s.dir, confirmFile), envelope, 0o600); err != nil {
		s.logger.Warn("keep the confirmation for the next start", "error", err)
	}
	s.prune()
}

// leave notes that the agent goes back, so that a later start does not go forth.
func (s *shelf) leave() {
	if s.left == s.newest() {
		return
	}
	s.left = s.newest()
	if err := writeFile(filepath.Join(s.dir, leftFile), strconv.AppendUint(nil, s.left, 10), 0o600); err != nil {
		s.logger.Warn("note the ruleset that was not confirmed", "generation", s.left, "error", err)
	}
}

// needed leaves out, in place, what nobody goes back to: all before the last ruleset
// that stays, and of many that may yet be confirmed the oldest.
func (s *shelf) needed(rulesets []*kept) []*kept {
	base := 0
	for i, k := range rulesets {
		if s.stays(k) {
			base = i
		}
	}
	rulesets = slices.Delete(rulesets, 0, base)
	if n := len(rulesets); n > mostUnconfirmed+1 {
		rulesets = slices.Delete(rulesets, 1, n-mostUnconfirmed)
	}
	return rulesets
}

// prune lets go of what nobody goes back to, and of its files.
func (s *shelf) prune() {
	s.rulesets = s.needed(s.rulesets)
	keep := map[string]bool{journalFile(s.series): true}
	for _, k := range s.rulesets {
		if k.series != s.series {
			keep[olderFile(k.series)], keep[journalFile(k.series)] = true, true
		}
	}
	for _, path := range append(s.older(), s.journals()...) {
		if !keep[filepath.Base(path)] {
			s.remove(filepath.Base(path))
		}
	}
}

func (s *shelf) remove(name string) {
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Warn("let go of a kept file", "name", name, "error", err)
	}
}

// openConfirmation verifies that a controller signed a confirmation.
func openConfirmation(bundle *identity.Bundle, envelope []byte, now time.Time) (bocage.Confirmation, error) {
	var confirmation bocage.Confirmation
	payload, err := openSigned(bundle, bocage.SignedConfirm, envelope, now)
	if err == nil {
		err = json.Unmarshal(payload, &confirmation)
	}
	if err != nil {
		return confirmation, fmt.Errorf("confirmation: %w", err)
	}
	return confirmation, nil
}
