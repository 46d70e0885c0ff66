package policy

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"bocage.dev/bocage"
)

const (
	// plainMost is the size from which on rulesets are compressed. Up to it they
	// are JSON that people can read.
	plainMost = 256 << 10
	// decodedMost bounds what something compressed may become.
	decodedMost = 1 << 30
)

// encoder writes the rulesets of one outcome's hosts. Peers, groups and the rules with
// wildcards are the same for most hosts and make up most of the size, so they are encoded
// and compressed only once. A ruleset is the concatenation of the host's own part, the
// shared peers and groups, the host's own rules and the shared rules. Compressed, these
// are gzip members, which may follow each other in one stream.
type encoder struct {
	whole *bocage.Ruleset
	cut   func(host string) *bocage.Ruleset
	// shared is the JSON of peers and groups, tail that of the last rules.
	shared, tail                     []byte
	sharedCompressed, tailCompressed func() ([]byte, error)
	wildcards                        int // rules in the tail
}

// ownPart is the fields of a Ruleset but for peers, groups and rules, which come
// last.
type ownPart struct {
	Generation uint64                  `json:"generation"`
	Digest     string                  `json:"digest"`
	Host       string                  `json:"host,omitempty"`
	ConfirmBy  time.Time               `json:"confirmBy,omitzero"`
	Decisions  []bocage.Decision       `json:"decisions"`
	Default    bocage.DecisionID       `json:"default"`
	Refused    []bocage.Refusal        `json:"refused,omitempty"`
	Profiles   []bocage.Profile        `json:"profiles,omitempty"`
	Ports      []bocage.Port           `json:"ports,omitempty"`
	Wires      []bocage.Wire           `json:"wires,omitempty"`
	Newcomers  []bocage.Newcomers      `json:"newcomers,omitempty"`
	Decoys     []bocage.DecoyPlacement `json:"decoys,omitempty"`
	Names      []bocage.Name           `json:"names,omitempty"`
}

// sharedPart is what most hosts have in common.
type sharedPart struct {
	Peers  []bocage.Peer      `json:"peers"`
	Groups []bocage.GroupInfo `json:"groups"`
}

// newEncoder prepares to write the rulesets that cut makes out of whole. It reuses what is
// the same in an earlier encoder, which may be nil.
func newEncoder(whole *bocage.Ruleset, cut func(host string) *bocage.Ruleset, before *encoder) (*encoder, error) {
	if before != nil {
		whole = whole.Copy().Like(before.whole) // reuses its index and digests
	}
	if before != nil && same(before.whole.Peers, whole.Peers) && same(before.whole.Groups, whole.Groups) && same(before.whole.Rules, whole.Rules) {
		e := *before
		e.whole, e.cut = whole, cut
		return &e, nil
	}
	e := &encoder{whole: whole, cut: cut}
	var err error
	if e.shared, err = middle(sharedPart{whole.Peers, whole.Groups}); err != nil {
		return nil, fmt.Errorf("encode generation %d: %w", whole.Generation, err)
	}
	wildcards := whole.Rules[firstWildcard(whole.Rules):]
	tail, err := json.Marshal(wildcards)
	if err != nil {
		return nil, fmt.Errorf("encode generation %d: %w", whole.Generation, err)
	}
	e.tail, e.wildcards = append(tail[1:], '}'), len(wildcards) // the host's rules open the list
	e.sharedCompressed = sync.OnceValues(func() ([]byte, error) { return compress(e.shared) })
	e.tailCompressed = sync.OnceValues(func() ([]byte, error) { return compress(e.tail) })
	return e, nil
}

// middle returns the JSON of an object's fields as they stand in the middle of another
// object: with a comma before them and the beginning of the rules after them.
func middle(fields any) ([]byte, error) {
	b, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	b[0] = ','
	return append(b[:len(b)-1], `,"rules":[`...), nil
}

// firstWildcard returns where the rules with wildcards begin: they come last.
func firstWildcard(rules []bocage.Rule) int {
	i := slices.IndexFunc(rules, func(r bocage.Rule) bool { return r.From == bocage.GroupAny || r.To == bocage.GroupAny })
	if i < 0 {
		return len(rules)
	}
	return i
}

// same reports whether two slices are the same memory.
func same[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// numbered returns the ruleset of one host under its own number. The digest does not cover
// the number, so that equal content has an equal digest.
func (e *encoder) numbered(host string, number uint64, confirmBy time.Time) *bocage.Ruleset {
	cut := e.cut(host)
	cut.Generation, cut.ConfirmBy = number, confirmBy
	cut.Digest = cut.Like(e.whole).ContentDigest()
	return cut
}

// encode writes a host's ruleset.
func (e *encoder) encode(cut *bocage.Ruleset) ([]byte, error) {
	host := cut.Host
	named := cut.Rules[:firstWildcard(cut.Rules)]
	ownTail := len(cut.Rules)-len(named) != e.wildcards
	if ownTail {
		named = cut.Rules // a host without ports has none of the wildcards either
	}
	rules, err := json.Marshal(named)
	if err != nil {
		return nil, fmt.Errorf("encode the rules of %s: %w", host, err)
	}
	rules = rules[1 : len(rules)-1]
	tail := e.tail
	switch {
	case ownTail:
		tail = []byte("]}")
	case len(named) > 0 && e.wildcards > 0:
		rules = append(rules, ',')
	}
	shared := e.shared
	ownShared := !same(cut.Peers, e.whole.Peers) || !same(cut.Groups, e.whole.Groups)
	if ownShared {
		if shared, err = middle(sharedPart{cut.Peers, cut.Groups}); err != nil {
			return nil, fmt.Errorf("encode the peers of %s: %w", host, err)
		}
	}
	own, err := json.Marshal(ownPart{Generation: cut.Generation, Digest: cut.Digest, ConfirmBy: cut.ConfirmBy, Host: cut.Host, Decisions: cut.Decisions, Default: cut.Default, Refused: cut.Refused,
		Profiles: cut.Profiles, Ports: cut.Ports, Wires: cut.Wires, Newcomers: cut.Newcomers, Decoys: cut.Decoys, Names: cut.Names})
	if err != nil {
		return nil, fmt.Errorf("encode the ruleset of %s: %w", host, err)
	}
	own = own[:len(own)-1]
	if len(own)+len(shared)+len(rules)+len(tail) <= plainMost {
		return slices.Concat(own, shared, rules, tail), nil
	}
	var out []byte
	for _, piece := range []struct {
		once  func() ([]byte, error)
		plain []byte
		own   bool
	}{{nil, own, true}, {e.sharedCompressed, shared, ownShared}, {nil, rules, true}, {e.tailCompressed, tail, ownTail}} {
		var compressed []byte
		if piece.own {
			compressed, err = compress(piece.plain)
		} else {
			compressed, err = piece.once()
		}
		if err != nil {
			return nil, err
		}
		out = append(out, compressed...)
	}
	return out, nil
}

func compress(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return out.Bytes(), nil
}

// decompress undoes compress, up to decodedMost.
func decompress(b []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, decodedMost+1))
	if err != nil {
		return nil, err
	}
	if len(plain) > decodedMost {
		return nil, fmt.Errorf("it is larger than %d bytes", decodedMost)
	}
	return plain, nil
}

// encodeAmendment writes an amendment, compressed if it is large.
func encodeAmendment(a *bocage.Amendment) ([]byte, error) {
	text, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("encode the amendment for %s: %w", a.Host, err)
	}
	if len(text) <= plainMost {
		return text, nil
	}
	return compress(text)
}

// DecodeAmendment reads the payload of a signed amendment.
func DecodeAmendment(payload []byte) (*bocage.Amendment, error) {
	a := &bocage.Amendment{}
	if err := unpack(payload, a); err != nil {
		return nil, fmt.Errorf("decode an amendment: %w", err)
	}
	return a, nil
}

// DecodeRuleset reads the payload of a signed ruleset: the JSON of a Ruleset,
// compressed by gzip if it is large.
func DecodeRuleset(payload []byte) (*bocage.Ruleset, error) {
	rs := &bocage.Ruleset{}
	if err := unpack(payload, rs); err != nil {
		return nil, fmt.Errorf("decode a ruleset: %w", err)
	}
	return rs, nil
}

func unpack(payload []byte, into any) error {
	if bytes.HasPrefix(payload, []byte{0x1f, 0x8b}) {
		var err error
		if payload, err = decompress(payload); err != nil {
			return fmt.Errorf("decompress: %w", err)
		}
	}
	return json.Unmarshal(payload, into)
}
