package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
)

// pieceQuestion is what an agent asks on agent.HOST.piece. The answer is the piece.
type pieceQuestion struct {
	Parcel string `json:"parcel"` // its Name
	Number int    `json:"number"`
}

const (
	// arrivingFile has the pieces of a parcel that have come, each at its place.
	arrivingFile = "ruleset.arriving"
	// pieceWait is how long one answer may take, pieceTries how often one piece is
	// asked for before the question is put anew: what came is not fetched again then.
	pieceWait  = 10 * time.Second
	pieceTries = 4
)

// collect fetches a parcel and returns it at its place in an answer. What came of the
// same payload before, also to the last process, is not asked for again if the disk
// took it; a piece that is not what the parcel says is.
func (s *rulesetSource) collect(ctx context.Context, p *policy.Parcel) (answer rulesetAnswer, err error) {
	if err := p.Check(identity.MaxPayload); err != nil {
		return answer, fmt.Errorf("a controller offers %s: %w", p.Kind, err)
	}
	var place *[]byte
	switch p.Kind {
	case bocage.SignedRuleset:
		place = &answer.Ruleset
	case bocage.SignedCandidate:
		place = &answer.Candidate
	default:
		return answer, fmt.Errorf("a controller offers a parcel of kind %q", p.Kind)
	}
	envelope := make([]byte, len(p.Head)+p.Size, len(p.Head)+p.Size+len(p.Tail))
	copy(envelope, p.Head)
	payload := envelope[len(p.Head):]
	kept := s.keepArriving(p)
	defer kept.close()
	name, had, started := p.Name(), 0, time.Now()
	for number := range p.Sums {
		first, end := p.Piece(number)
		if kept.read(payload[first:end], first) && p.Is(number, payload[first:end]) {
			had++
			continue
		}
		came, err := s.piece(ctx, p, pieceQuestion{name, number})
		if err != nil {
			return answer, fmt.Errorf("fetch piece %d of the %d of a %s: %w", number+1, len(p.Sums), p.Kind, err)
		}
		copy(payload[first:end], came)
		kept.write(came, first)
	}
	*place = append(envelope, p.Tail...)
	s.agent.logger.Info("large envelope fetched", "kind", p.Kind, "bytes", p.Size, "pieces", len(p.Sums), "had", had, "took", time.Since(started))
	return answer, nil
}

// arriving keeps the pieces that came on disk, each at its place. It saves fetching them
// again and nothing depends on it: a disk that is full or damaged keeps no ruleset away.
type arriving struct {
	file   *os.File // nil: nothing is kept
	full   bool     // nothing more is written
	logger *slog.Logger
}

// keepArriving opens what came of a parcel before.
func (s *rulesetSource) keepArriving(p *policy.Parcel) *arriving {
	a := &arriving{logger: s.agent.logger}
	file, err := os.OpenFile(s.arriving(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		a.fails(err)
		return a
	}
	a.file, s.arrived = file, true
	if err := file.Truncate(int64(p.Size)); err != nil {
		a.fails(err)
	}
	return a
}

// fails says why nothing more is kept, once.
func (a *arriving) fails(err error) {
	if !a.full {
		a.logger.Warn("keep the pieces of a large ruleset on disk: what is interrupted is fetched from its beginning", "error", err)
	}
	a.full = true
}

// read fills a piece that came before, and reports whether there was as much.
func (a *arriving) read(piece []byte, first int) bool {
	if a.file == nil {
		return false
	}
	n, _ := a.file.ReadAt(piece, int64(first)) // what cannot be read is fetched
	return n == len(piece)
}

func (a *arriving) write(piece []byte, first int) {
	if a.file == nil || a.full {
		return
	}
	if _, err := a.file.WriteAt(piece, int64(first)); err != nil {
		a.fails(err)
	}
}

func (a *arriving) close() {
	if a.file == nil {
		return
	}
	if err := a.file.Close(); err != nil {
		a.fails(err)
	}
}

// piece fetches a piece. A controller that is away, or a damaged answer, is no reason
// to give up at once: another one may answer.
func (s *rulesetSource) piece(ctx context.Context, p *policy.Parcel, question pieceQuestion) ([]byte, error) {
	asked, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	var faults []error
	for try := range pieceTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Duration(try) * 200 * time.Millisecond):
			}
		}
		answer, err := s.askPiece(ctx, asked)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			faults = append(faults, err)
		case !p.Is(question.Number, answer):
			faults = append(faults, fmt.Errorf("%d bytes came that are not what was asked for", len(answer)))
		default:
			return answer, nil
		}
	}
	return nil, errors.Join(faults...)
}

func (s *rulesetSource) askPiece(ctx context.Context, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pieceWait)
	defer cancel()
	return s.agent.exchange.Ask(ctx, fmt.Sprintf(subjectPiece, s.agent.cfg.Host), question)
}

func (s *rulesetSource) arriving() string {
	return filepath.Join(s.agent.cfg.agentDir("identity"), arrivingFile)
}

// letGo removes what came of a parcel that is not waited for any more.
func (s *rulesetSource) letGo() {
	if !s.arrived {
		return
	}
	s.arrived = false
	if err := os.Remove(s.arriving()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.agent.logger.Warn("let go of what came of a ruleset", "error", err)
	}
}
