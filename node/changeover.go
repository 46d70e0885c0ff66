package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
)

// What agents and controllers do when a controller, or what controllers know, is lost.

const (
	// leaveAfter is for how long an agent's controller may answer nothing about policy
	// before the agent goes to another one. It doubles each time, to leaveMost, until
	// one answers: where none of them can, going round does not help.
	leaveAfter = 3 * time.Second
	leaveMost  = time.Minute
)

// unanswered is how long nothing was answered.
type unanswered struct {
	since time.Time     // the first question without an answer; zero: there is none
	after time.Duration // of that, the controller is left
}

// asked notes a question.
func (u *unanswered) asked(now time.Time) {
	if u.since.IsZero() {
		u.since = now
	}
}

// leaves reports whether it is time to go to another controller, since a question was
// not answered, and begins to wait for that one's answers.
func (u *unanswered) leaves(now time.Time) bool {
	u.after = max(u.after, leaveAfter)
	if now.Sub(u.since) < u.after {
		return false
	}
	u.since, u.after = time.Time{}, min(2*u.after, leaveMost)
	return true
}

// leave goes to another controller, if there may be one: this one lives, or its machine
// does, but it has nothing to say, since it is held up or cut off from the others.
func (a *agentProcess) leave(why error) {
	others := len(a.cfg.Controllers) > 1 || len(a.cfg.Controllers) == 1 && !isAddress(a.cfg.Controllers[0])
	if !others || !a.conn.Connected() { // or it is looking for another one already
		return
	}
	a.logger.Warn("a controller answers nothing about policy: going to another one", "controller", a.conn.Address(), "error", why)
	if err := a.conn.Leave(); err != nil {
		a.logger.Debug("leave the controller", "error", err)
	}
}

// isAddress reports whether a controller's address is one, and no name of several.
func isAddress(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err == nil
}

// mostProof is the most of an envelope that an agent shows, in bytes: as text, with what
// goes around it, it has to go into one message.
const mostProof = 5 << 20

// proofs are the envelopes by which the newest ruleset and the last confirmation came,
// as far as a message takes them.
func (s *shelf) proofs() [][]byte {
	var all [][]byte
	show := func(envelope []byte, err error) {
		switch {
		case err == nil && len(envelope) <= mostProof:
			all = append(all, envelope)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			s.logger.Warn("show a controller what this host has", "error", err)
		}
	}
	if n := len(s.rulesets); n > 0 {
		newest := s.rulesets[n-1]
		if newest.amendment != nil {
			show(s.amendmentAt(newest.series, newest.at))
		} else if envelope, _, err := s.envelope(newestFile); len(envelope) <= mostProof/2 || s.confirmed == 0 {
			show(envelope, err)
		}
	}
	if s.confirmed > 0 {
		envelope, _, err := s.envelope(confirmFile)
		show(envelope, err)
	}
	return all
}

// amendmentAt reads one envelope of a series' amendments.
func (s *shelf) amendmentAt(series uint64, at int64) ([]byte, error) {
	file, err := os.Open(filepath.Join(s.dir, journalFile(series)))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, journalHead)
	if _, err := file.ReadAt(head, at); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[8:])
	if length > mostProof {
		return nil, nil
	}
	envelope := make([]byte, length)
	_, err = file.ReadAt(envelope, at+journalHead)
	return envelope, err
}

// proved is the highest generation in what a host shows that a controller signed, however
// long ago: all that it can do is to raise a number, and what was quiet for longer than a
// certificate lives has to prove as much.
func (c *controllerProcess) proved(host string, proofs [][]byte) uint64 {
	highest := uint64(0)
	for _, envelope := range proofs[:min(len(proofs), 2)] {
		bundle := c.authority.Bundle()
		then, err := identity.SignedUntil(envelope)
		if err != nil {
			continue
		}
		if rs, err := openRuleset(bundle, bocage.SignedRuleset, envelope, host, then); err == nil {
			highest = max(highest, rs.Generation)
		}
		if payload, err := openSigned(bundle, bocage.SignedAmendment, envelope, then); err == nil {
			if amendment, err := policy.DecodeAmendment(payload); err == nil {
				highest = max(highest, amendment.Generation)
			}
		}
		if confirmation, err := openConfirmation(bundle, envelope, then); err == nil {
			highest = max(highest, confirmation.Generation)
		}
	}
	return highest
}

const (
	// numberedFile has the highest number of a generation that a controller knows of,
	// so that it is not given again when the store was restored from a backup.
	numberedFile = "numbered"
	// noteEvery is how often it is written.
	noteEvery = time.Second
)

// readNumbered reads that, 0 where nothing is known.
func readNumbered(path string, logger *slog.Logger) uint64 {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	number, parse := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err := errors.Join(err, parse); err != nil {
		logger.Warn("which generations were numbered is not known: if the store was restored from a backup, hosts have to show it", "path", path, "error", err)
		return 0
	}
	return number
}

// keepNumbered writes it.
func (c *controllerProcess) keepNumbered(ctx context.Context) error {
	path, kept := c.cfg.controllerDir(numberedFile), uint64(0)
	return every(ctx, noteEvery, func() error {
		number := c.policy.Numbered()
		if number <= kept {
			return nil
		}
		if err := writeFile(path, strconv.AppendUint(nil, number, 10), 0o600); err != nil {
			c.logger.Warn("note which generations were numbered", "error", err)
			return nil
		}
		kept = number
		return nil
	})
}
