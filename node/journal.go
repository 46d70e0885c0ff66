package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
)

// Bounds of the amendments of one whole ruleset. Beyond, the next is asked for whole:
// a start reads all of them.
const (
	mostAmendments     = 1024
	mostAmendmentBytes = 16 << 20
)

// journal is what is known of a series: a whole ruleset and the amendments that came
// since, which lie in a file of their own, one after the other: when it was taken (8
// bytes, nanoseconds of Unix), its length (4 bytes), both big-endian, and the envelope.
type journal struct {
	entries  int
	size     int64
	unsynced bool
	sound    bool // the newest ruleset is what its digest names
	judged   bool // it was looked at
}

const journalHead = 12

func journalFile(series uint64) string { return fmt.Sprintf("ruleset-%d.amendments", series) }

func (s *shelf) journals() []string {
	paths, err := filepath.Glob(filepath.Join(s.dir, "ruleset-*.amendments"))
	if err != nil {
		s.logger.Warn("list kept amendments", "error", err)
	}
	return paths
}

// readSeries reads what a whole ruleset became by its amendments, before a generation.
// What is cut short, or does not follow, ends it: the last write of a process may have
// been interrupted. There may be many, each a whole ruleset: those that nobody needs
// are let go on the way.
func (s *shelf) readSeries(whole *bocage.Ruleset, bundle *identity.Bundle, before uint64) ([]*kept, journal) {
	series := []*kept{keptWhole(whole)}
	var j journal
	name := journalFile(whole.Generation)
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.logger.Warn("kept amendments are of no use", "name", name, "error", err)
		}
		return series, j
	}
	for rest := data; len(rest) >= journalHead; {
		length := int(binary.BigEndian.Uint32(rest[8:journalHead]))
		if len(rest)-journalHead < length {
			break
		}
		k, err := readKept(series[len(series)-1], bundle, rest[journalHead:journalHead+length], time.Unix(0, int64(binary.BigEndian.Uint64(rest))))
		if err != nil {
			s.logger.Warn("a kept amendment is of no use, nor are those after it", "name", name, "error", err)
			break
		}
		if k.generation >= before {
			break
		}
		k.at = j.size
		series, rest = s.needed(append(series, k)), rest[journalHead+length:]
		j.entries, j.size = j.entries+1, j.size+journalHead+int64(length)
	}
	if j.size < int64(len(data)) {
		if err := os.Truncate(filepath.Join(s.dir, name), j.size); err != nil {
			s.logger.Warn("cut off kept amendments that are of no use", "name", name, "error", err)
		}
	}
	return series, j
}

func readKept(before *kept, bundle *identity.Bundle, envelope []byte, taken time.Time) (*kept, error) {
	payload, err := openSigned(bundle, bocage.SignedAmendment, envelope, taken)
	if err != nil {
		return nil, err
	}
	amendment, err := policy.DecodeAmendment(payload)
	if err != nil {
		return nil, err
	}
	return before.amended(amendment)
}

// amended is what an amendment makes of a ruleset.
func (k *kept) amended(a *bocage.Amendment) (*kept, error) {
	after, err := k.ruleset().Amend(a)
	if err != nil {
		return nil, err
	}
	return &kept{generation: a.Generation, confirmBy: a.ConfirmBy, series: k.series, amendment: a, ruleset: after}, nil
}

// amendable says whether an amendment of the newest ruleset would be of use.
func (s *shelf) amendable() bool {
	return s.journal.sound && s.left == 0 && s.journal.entries < mostAmendments && s.journal.size < mostAmendmentBytes
}

// amend puts what an amendment makes of the newest ruleset on the shelf. It is in the
// file when this returns, and safe from the end of this process; from the end of the
// host, which takes what is enforced along, with settle.
func (s *shelf) amend(a *bocage.Amendment, envelope []byte, now time.Time) error {
	if len(s.rulesets) == 0 || s.left != 0 {
		return errors.New("there is no ruleset to amend")
	}
	k, err := s.rulesets[len(s.rulesets)-1].amended(a)
	if err != nil {
		return err
	}
	k.at = s.journal.size
	s.rulesets = append(s.rulesets, k)
	record := make([]byte, journalHead, journalHead+len(envelope))
	binary.BigEndian.PutUint64(record, uint64(now.UnixNano()))
	binary.BigEndian.PutUint32(record[8:], uint32(len(envelope)))
	record = append(record, envelope...)
	if err := s.append(record); err != nil {
		s.logger.Warn("keep the amendment for the next start", "error", err)
		s.journal.sound = false // the next one is to come whole
	}
	s.journal.entries, s.journal.size, s.journal.unsynced = s.journal.entries+1, s.journal.size+int64(len(record)), true
	s.prune()
	return nil
}

func (s *shelf) append(record []byte) error {
	file, err := os.OpenFile(filepath.Join(s.dir, journalFile(s.series)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(record)
	if closing := file.Close(); err == nil {
		err = closing
	}
	return err
}

// cutJournal takes the end of the newest series' amendments off.
func (s *shelf) cutJournal(at int64) {
	if err := os.Truncate(filepath.Join(s.dir, journalFile(s.series)), at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Warn("let go of the amendment that was left", "error", err)
	}
}

// settle does what need not be done before a ruleset is in force: it makes the newest
// one if that is not made yet, with what the next amendment will be checked against,
// and brings amendments onto the disk.
func (s *shelf) settle() {
	if len(s.rulesets) == 0 {
		return
	}
	newest := s.rulesets[len(s.rulesets)-1].ruleset()
	if !s.journal.judged {
		s.journal.judged = true
		if s.journal.sound = newest.Digest == newest.ContentDigest(); !s.journal.sound {
			s.logger.Warn("the ruleset is not what its digest says, so this host asks for the next one whole",
				"generation", newest.Generation, "digest", newest.Digest)
		}
		newest.Lookup(netip.IPv4Unspecified()) // so that it has been asked once
	}
	if !s.journal.unsynced {
		return
	}
	s.journal.unsynced = false
	file, err := os.OpenFile(filepath.Join(s.dir, journalFile(s.series)), os.O_WRONLY, 0)
	if err == nil {
		err = errors.Join(file.Sync(), file.Close())
	}
	if err != nil {
		// The kernel forgets what it could not write: asking again would prove nothing.
		s.logger.Warn("bring kept amendments onto the disk: the next ruleset is asked for whole", "error", err)
		s.journal.sound = false
	}
}
