package policy

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"bocage.dev/bocage"
)

const (
	// plainMost is the size from which on rulesets are compressed. Up to it they
	// are JSON that people can read.
	plainMost = 256 << 10
	// decodedMost bounds what a compressed ruleset may become.
	decodedMost = 1 << 30
)

// encoder writes the rulesets of one generation's hosts. Peers and groups are
// the same in all of them and are most of their size, so they are written and
// compressed once: gzip members may follow each other.
type encoder struct {
	shared           []byte // JSON, without its last brace
	sharedCompressed []byte
}

// sharedPart and hostPart are the fields of a Ruleset.
type sharedPart struct {
	Generation uint64             `json:"generation"`
	Digest     string             `json:"digest"`
	Peers      []bocage.Peer      `json:"peers"`
	Groups     []bocage.GroupInfo `json:"groups"`
	Refused    []bocage.Refusal   `json:"refused,omitempty"`
}

type hostPart struct {
	Host      string                  `json:"host,omitempty"`
	Rules     []bocage.Rule           `json:"rules"`
	Decisions []bocage.Decision       `json:"decisions"`
	Default   bocage.DecisionID       `json:"default"`
	Profiles  []bocage.Profile        `json:"profiles,omitempty"`
	Ports     []bocage.Port           `json:"ports,omitempty"`
	Decoys    []bocage.DecoyPlacement `json:"decoys,omitempty"`
}

func newEncoder(whole *bocage.Ruleset) (*encoder, error) {
	shared, err := json.Marshal(sharedPart{whole.Generation, whole.Digest, whole.Peers, whole.Groups, whole.Refused})
	if err != nil {
		return nil, fmt.Errorf("encode generation %d: %w", whole.Generation, err)
	}
	return &encoder{shared: shared[:len(shared)-1]}, nil
}

// encode writes the ruleset of one host, which was cut from the encoder's whole.
func (e *encoder) encode(cut *bocage.Ruleset) ([]byte, error) {
	own, err := json.Marshal(hostPart{cut.Host, cut.Rules, cut.Decisions, cut.Default, cut.Profiles, cut.Ports, cut.Decoys})
	if err != nil {
		return nil, fmt.Errorf("encode the ruleset of %s: %w", cut.Host, err)
	}
	own[0] = ',' // where the brace was: the shared part goes before
	if len(e.shared)+len(own) <= plainMost {
		return slices.Concat(e.shared, own), nil
	}
	if e.sharedCompressed == nil {
		if e.sharedCompressed, err = compress(e.shared); err != nil {
			return nil, err
		}
	}
	tail, err := compress(own)
	if err != nil {
		return nil, err
	}
	return slices.Concat(e.sharedCompressed, tail), nil
}

func compress(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("compress a ruleset: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress a ruleset: %w", err)
	}
	return out.Bytes(), nil
}

// DecodeRuleset reads the payload of a signed ruleset: the JSON of a Ruleset,
// compressed by gzip if it is large.
func DecodeRuleset(payload []byte) (*bocage.Ruleset, error) {
	if bytes.HasPrefix(payload, []byte{0x1f, 0x8b}) {
		r, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, fmt.Errorf("decompress a ruleset: %w", err)
		}
		if payload, err = io.ReadAll(io.LimitReader(r, decodedMost+1)); err != nil {
			return nil, fmt.Errorf("decompress a ruleset: %w", err)
		}
		if len(payload) > decodedMost {
			return nil, fmt.Errorf("decompress a ruleset: it is larger than %d bytes", decodedMost)
		}
	}
	rs := &bocage.Ruleset{}
	if err := json.Unmarshal(payload, rs); err != nil {
		return nil, fmt.Errorf("decode a ruleset: %w", err)
	}
	return rs, nil
}
