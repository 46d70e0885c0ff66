package dataplane

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsSpecimens are answers of all shapes that are read.
func dnsSpecimens(t testing.TB) [][]byte {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var all [][]byte
	for range 60 {
		all = append(all, drawAnswer(t, random))
	}
	return all
}

// drawAnswer makes an answer with aliases, addresses of the name and of others, and
// records that nobody asked for, in any order, with names compressed or not.
func drawAnswer(t testing.TB, r *rand.Rand) []byte {
	t.Helper()
	names := []string{"api.example.com.", "EDGE.cdn.test.", "x.y.z.cdn.test.", "other.test.", strings.Repeat("a.", 60) + "deep.test.",
		strings.Repeat("long-label-long-label-long-label-long-label-long-label-x.", 4) + "test."}
	name := func() dnsmessage.Name { return dnsmessage.MustNewName(names[r.IntN(len(names))]) }
	header := func(owner dnsmessage.Name) dnsmessage.ResourceHeader {
		h := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: uint32(r.IntN(7200))}
		switch r.IntN(20) {
		case 0:
			h.TTL = 1<<31 + 5
		case 1:
			h.Class = dnsmessage.ClassCHAOS
		}
		return h
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(r.Uint32()), Response: true, RecursionAvailable: true},
		Questions: []dnsmessage.Question{{Name: name(), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	at := m.Questions[0].Name
	for range r.IntN(4) { // a chain of aliases
		next := name()
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(at), Body: &dnsmessage.CNAMEResource{CNAME: next}})
		at = next
	}
	for range r.IntN(6) {
		owner := at
		if r.IntN(4) == 0 {
			owner = name()
		}
		switch r.IntN(4) {
		case 0:
			var a dnsmessage.AAAAResource
			binary.BigEndian.PutUint64(a.AAAA[:], r.Uint64())
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(owner), Body: &a})
		case 1:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(owner), Body: &dnsmessage.TXTResource{TXT: []string{"v=spf1"}}})
		default:
			var a dnsmessage.AResource
			binary.BigEndian.PutUint32(a.A[:], r.Uint32())
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(owner), Body: &a})
		}
	}
	if r.IntN(3) == 0 {
		r.Shuffle(len(m.Answers), func(i, j int) { m.Answers[i], m.Answers[j] = m.Answers[j], m.Answers[i] })
	}
	var b []byte
	var err error
	if r.IntN(3) > 0 {
		b, err = m.Pack()
	} else {
		b, err = packPlainly(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// packPlainly packs without compression.
func packPlainly(m dnsmessage.Message) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, m.Header)
	err := b.StartQuestions()
	for _, q := range m.Questions {
		err = errorsOr(err, b.Question(q))
	}
	err = errorsOr(err, b.StartAnswers())
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			err = errorsOr(err, b.AResource(a.Header, *body))
		case *dnsmessage.AAAAResource:
			err = errorsOr(err, b.AAAAResource(a.Header, *body))
		case *dnsmessage.CNAMEResource:
			err = errorsOr(err, b.CNAMEResource(a.Header, *body))
		case *dnsmessage.TXTResource:
			err = errorsOr(err, b.TXTResource(a.Header, *body))
		}
	}
	if err != nil {
		return nil, err
	}
	return b.Finish()
}

func errorsOr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// toldIn is what a message tells of its question's name, by another reader: addresses
// with their TTLs, up to the first record that is not whole.
func toldIn(b []byte) []string {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.OpCode != 0 || h.Truncated || h.RCode != 0 {
		return nil
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 || questions[0].Class != dnsmessage.ClassINET {
		return nil
	}
	type record struct {
		owner, alias string
		ttl          uint32
		address      netip.Addr
	}
	var records []record
	for len(records) < 64 {
		h, err := p.AnswerHeader()
		if err != nil {
			break
		}
		r := record{owner: strings.ToLower(h.Name.String()), ttl: h.TTL}
		if r.ttl >= 1<<31 {
			r.ttl = 0
		}
		internet := h.Class == dnsmessage.ClassINET
		// An alias can be read though its record claims more than the message has.
		if rest := p; rest.SkipAnswer() != nil {
			break
		}
		switch {
		case internet && h.Type == dnsmessage.TypeA && h.Length == 4:
			var body dnsmessage.AResource
			if body, err = p.AResource(); err == nil {
				r.address = netip.AddrFrom4(body.A)
			}
		case internet && h.Type == dnsmessage.TypeAAAA && h.Length == 16:
			var body dnsmessage.AAAAResource
			if body, err = p.AAAAResource(); err == nil {
				r.address = netip.AddrFrom16(body.AAAA)
			}
		case internet && h.Type == dnsmessage.TypeCNAME:
			var body dnsmessage.CNAMEResource
			if body, err = p.CNAMEResource(); err == nil {
				r.alias = strings.ToLower(body.CNAME.String())
			}
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			break
		}
		records = append(records, r)
	}
	name, ttl := strings.ToLower(questions[0].Name.String()), uint32(1<<31-1)
	for range 17 {
		i := slices.IndexFunc(records, func(r record) bool { return r.owner == name && r.alias != "" })
		if i < 0 {
			var told []string
			for _, r := range records {
				if r.owner == name && r.address.IsValid() {
					raw := r.address.As16()
					told = append(told, fmt.Sprintf("%d %x", min(r.ttl, ttl), raw[:]))
				}
			}
			return told
		}
		name, ttl = records[i].alias, min(ttl, records[i].ttl)
	}
	return nil
}

// The kernel's reader, built natively with sanitizers, reads messages as the reader of
// golang.org/x/net does; of mutated ones it may believe less, and never more.
func TestMessagesOfTheDNS(t *testing.T) {
	program := buildNative(t)
	random := newRandom(t)
	const batch, batches = 2000, 5
	told := 0
	for range batches {
		var inputs strings.Builder
		messages, whole := make([][]byte, batch), make([]bool, batch)
		for i := range messages {
			b := drawAnswer(t, random)
			if whole[i] = random.IntN(2) == 0; !whole[i] {
				for range 1 + random.IntN(4) {
					b[random.IntN(len(b))] = []byte{byte(random.Uint32()), 0, 1, 5, 12, 0xc0, 0xc1, 63, 64, '.'}[random.IntN(10)]
				}
				if random.IntN(3) == 0 {
					b = b[:random.IntN(len(b)+1)]
				}
			}
			messages[i] = b
			fmt.Fprintf(&inputs, "n %x\n", b)
		}
		run := exec.Command(program, "0", "1")
		run.Stdin = strings.NewReader(inputs.String())
		var said strings.Builder
		run.Stderr = &said
		out, err := run.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		lines := strings.Split(string(out), "\n")
		for i, b := range messages {
			var got []string
			for fields := strings.Fields(lines[i]); len(fields) > 1; fields = fields[2:] {
				got = append(got, fields[0]+" "+fields[1])
			}
			want := toldIn(b)
			told += len(got)
			if whole[i] && !slices.Equal(got, want) || slices.ContainsFunc(got, func(s string) bool { return !slices.Contains(want, s) }) {
				t.Fatalf("read %v, want %v (whole: %v)\n%s", got, want, whole[i], hex.Dump(b))
			}
		}
	}
	if told < batch {
		t.Errorf("%d addresses told: this tests little", told)
	}
}
