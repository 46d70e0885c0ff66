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

// encoder writes the rulesets of one generation's hosts. Peers, groups and the
// rules with wildcards are the same in all of them and are most of their size,
// so they are written and compressed once: a ruleset is a shared head, the
// host's own part, and a shared tail, and gzip members may follow each other.
type encoder struct {
	head, tail                     []byte // JSON: of the whole up to the host's fields, and of the last rules
	headCompressed, tailCompressed []byte
	wildcards                      int // rules in the tail
}

// headPart and hostPart are the fields of a Ruleset, but for the rules, which
// come last.
type headPart struct {
	Generation uint64             `json:"generation"`
	Digest     string             `json:"digest"`
	Peers      []bocage.Peer      `json:"peers"`
	Groups     []bocage.GroupInfo `json:"groups"`
	Refused    []bocage.Refusal   `json:"refused,omitempty"`
}

type hostPart struct {
	Host      string                  `json:"host,omitempty"`
	Decisions []bocage.Decision       `json:"decisions"`
	Default   bocage.DecisionID       `json:"default"`
	Profiles  []bocage.Profile        `json:"profiles,omitempty"`
	Ports     []bocage.Port           `json:"ports,omitempty"`
	Decoys    []bocage.DecoyPlacement `json:"decoys,omitempty"`
}

func newEncoder(whole *bocage.Ruleset) (*encoder, error) {
	head, err := json.Marshal(headPart{whole.Generation, whole.Digest, whole.Peers, whole.Groups, whole.Refused})
	if err != nil {
		return nil, fmt.Errorf("encode generation %d: %w", whole.Generation, err)
	}
	wildcards := whole.Rules[firstWildcard(whole.Rules):]
	tail, err := json.Marshal(wildcards)
	if err != nil {
		return nil, fmt.Errorf("encode generation %d: %w", whole.Generation, err)
	}
	tail = append(tail[1:], '}') // the host's part opens the list
	return &encoder{head: head[:len(head)-1], tail: tail, wildcards: len(wildcards)}, nil
}

// firstWildcard finds where the rules about anyone begin: they come last.
func firstWildcard(rules []bocage.Rule) int {
	i := slices.IndexFunc(rules, func(r bocage.Rule) bool { return r.From == bocage.GroupAny || r.To == bocage.GroupAny })
	if i < 0 {
		return len(rules)
	}
	return i
}

// encode writes the ruleset of one host, which was cut from the encoder's whole.
func (e *encoder) encode(cut *bocage.Ruleset) ([]byte, error) {
	own, err := json.Marshal(hostPart{cut.Host, cut.Decisions, cut.Default, cut.Profiles, cut.Ports, cut.Decoys})
	if err != nil {
		return nil, fmt.Errorf("encode the ruleset of %s: %w", cut.Host, err)
	}
	named := cut.Rules[:firstWildcard(cut.Rules)]
	shared := len(cut.Rules)-len(named) == e.wildcards
	if !shared {
		named = cut.Rules // a host without ports has none of the wildcards either
	}
	rules, err := json.Marshal(named)
	if err != nil {
		return nil, fmt.Errorf("encode the rules of %s: %w", cut.Host, err)
	}
	own[0] = ',' // where the brace was: the head goes before
	own = append(own[:len(own)-1], `,"rules":`...)
	own = append(own, rules[:len(rules)-1]...)
	tail := []byte("]}")
	if shared {
		tail = e.tail
		if len(named) > 0 && e.wildcards > 0 {
			own = append(own, ',')
		}
	}
	if len(e.head)+len(own)+len(tail) <= plainMost {
		return slices.Concat(e.head, own, tail), nil
	}
	if e.headCompressed == nil {
		if e.headCompressed, err = compress(e.head); err != nil {
			return nil, err
		}
		if e.tailCompressed, err = compress(e.tail); err != nil {
			return nil, err
		}
	}
	if !shared {
		own = append(own, tail...)
	}
	middle, err := compress(own)
	if err != nil {
		return nil, err
	}
	if !shared {
		return slices.Concat(e.headCompressed, middle), nil
	}
	return slices.Concat(e.headCompressed, middle, e.tailCompressed), nil
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
