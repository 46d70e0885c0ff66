package bocage

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// limited makes a ruleset in which a decision of two owes a rate, and the other none.
func limited(rate string, by ...Ref) *Ruleset {
	rs := &Ruleset{Default: 2, Decisions: []Decision{
		{ID: 1, Verdict: VerdictAllow, Code: ReasonRule, Duties: &Duties{Rate: rate}, By: by},
		{ID: 2, Verdict: VerdictAllow, Code: ReasonRule},
	}, Rules: []Rule{{From: 21, To: 22, Protocol: ProtocolTCP, Ports: AllPorts, Decision: 1}},
		Groups: []GroupInfo{{Group: 21, Enforce: true}, {Group: 22}}}
	for i := range 8 {
		rs.Peers = append(rs.Peers, Peer{Prefix: netip.PrefixFrom(limitedAddress(i), 32), Identity: Identity(100 + i), Group: Group(21 + i%2)})
	}
	return rs
}

func limitedAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

// However flows come, no span of time sees more of them than it has turns, and a
// quarter of a second's worth and one; and who never comes faster is never refused.
func TestLimitKeepsToTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.SampledFrom([]int{1, 2, 3, 4, 7, 20, 333, 10_000, 999_999}).Draw(t, "rate")
		limit, _ := (&Decision{ID: 7, Verdict: VerdictAllow, Duties: &Duties{Rate: fmt.Sprintf("%d/s", rate)}}).Limit()
		begin := time.Unix(1000, 0)
		patient := rapid.Bool().Draw(t, "patient")
		at, due := begin, time.Time{}
		var began []time.Time
		for range rapid.IntRange(1, 300).Draw(t, "flows") {
			gap := time.Duration(rapid.Int64Range(0, int64(2*limit.Every)).Draw(t, "gap"))
			if patient {
				gap = max(gap, limit.Every)
			}
			at = at.Add(gap)
			after, may := limit.Take(due, at)
			if !may && (patient || due.IsZero() || after != due) {
				t.Fatalf("refused, with a turn that is %s away", due.Sub(at))
			}
			if due = after; may {
				began = append(began, at)
			}
		}
		for i, first := range began {
			for n, end := range began[i:] {
				most := int((end.Sub(first)+LimitAhead)/limit.Every) + 1
				if n+1 > most {
					t.Fatalf("%d flows in %s, at %d/s: at most %d", n+1, end.Sub(first), rate, most)
				}
			}
		}
	})
}

// Many at once for long come at the rate that is declared.
func TestMeterOverTime(t *testing.T) {
	rs, m := limited("20/s"), &Meter{}
	flow := Flow{Source: limitedAddress(0), Destination: limitedAddress(1), Protocol: ProtocolTCP, At: time.Unix(1000, 0)}
	began, refused := 0, 0
	for n := range 10 * 1000 { // a thousand a second for ten seconds
		flow.SourcePort, flow.DestinationPort = uint16(n), uint16(n%7)
		flow.At = flow.At.Add(time.Millisecond)
		switch verdict, reason := m.Open(rs, flow); {
		case verdict.Allowed():
			began++
		case verdict == VerdictDrop && reason == Reason{Code: ReasonRateLimited, Decision: 1, Would: VerdictDrop}:
			refused++
		default:
			t.Fatalf("%s, %+v", verdict, reason)
		}
	}
	if began != 205 || refused != 10_000-205 { // and five that came before their turn
		t.Errorf("%d began and %d were refused, at 20/s for ten seconds", began, refused)
	}
}

// Pairs of ends are counted apart, and what owes no rate is not counted; where both
// ends are observed the excess is told of only.
func TestMeterTellsApart(t *testing.T) {
	rs, m := limited("1/s"), &Meter{}
	at := time.Unix(1000, 0)
	open := func(from, to int, protocol Protocol) (Verdict, Reason) {
		return m.Open(rs, Flow{Source: limitedAddress(from), Destination: limitedAddress(to), Protocol: protocol, DestinationPort: 80, At: at})
	}
	for from := 0; from < 8; from += 2 {
		for to := 1; to < 8; to += 2 {
			if verdict, _ := open(from, to, ProtocolTCP); !verdict.Allowed() {
				t.Errorf("%d to %d is refused for what others did", from, to)
			}
			if verdict, reason := open(from, to, ProtocolTCP); verdict != VerdictDrop || reason.Code != ReasonRateLimited {
				t.Errorf("%d to %d: %s, %s the second time", from, to, verdict, reason.Code)
			}
			for range 3 {
				if verdict, _ := open(from, to, ProtocolUDP); !verdict.Allowed() {
					t.Errorf("%d to %d is refused what is not limited", from, to)
				}
			}
		}
	}
	rs = rs.Copy()
	rs.Groups = nil
	if verdict, reason := open(0, 1, ProtocolTCP); verdict != VerdictAllow || reason.Would != VerdictDrop || reason.Code != ReasonRateLimited {
		t.Errorf("observed: %s, %+v", verdict, reason)
	}
	if len(m.due) != 16 {
		t.Errorf("%d pairs are remembered", len(m.due))
	}
}

// A meter remembers no more pairs than are ahead of their turn.
func TestMeterForgets(t *testing.T) {
	rs, m := limited("1/s"), &Meter{}
	for n := range 20_000 {
		rs.Peers[0].Identity = Identity(1000 + n)
		rs = rs.Copy()
		m.Open(rs, Flow{Source: limitedAddress(0), Destination: limitedAddress(1), Protocol: ProtocolTCP, At: time.Unix(1000+int64(n), 0)})
	}
	if len(m.due) > 1024 {
		t.Errorf("%d pairs are remembered, and all but one are over", len(m.due))
	}
}

// A limit is that of the declarations which owe it: it is the same in every
// generation, wherever they were declared and whatever else is decided, and another
// one for other declarations.
func TestLimitNumber(t *testing.T) {
	pci := Ref{Kind: "Guardrail", Name: "pci", Field: "spec.require.rate"}
	site := Ref{Kind: "Response", Name: "site", Field: "spec.then.require.rate"}
	contract := Ref{Kind: "Application", Namespace: "shop", Name: "db", Field: "spec.provides[0]"}
	number := func(id DecisionID, by ...Ref) uint64 {
		d := Decision{ID: id, Verdict: VerdictInspect, Duties: &Duties{Rate: "20/s"}, By: by}
		limit, is := d.Limit()
		if !is || limit.Every != 50*time.Millisecond {
			t.Errorf("%+v", limit)
		}
		return limit.Number
	}
	moved := pci
	moved.Source = "pci.yaml:7"
	same := []uint64{number(1, contract, pci), number(2, pci), number(3, contract, moved)}
	if len(slices.Compact(same)) != 1 {
		t.Errorf("numbers of one limit: %v", same)
	}
	if number(1, pci, site) != number(1, site, pci) {
		t.Error("the order of authors counts")
	}
	others := []uint64{number(1, pci), number(1, site), number(1, pci, site), number(1), number(2)}
	slices.Sort(others)
	if len(slices.Compact(others)) != 5 {
		t.Errorf("numbers of different limits: %v", others)
	}
	for _, d := range []Decision{{Verdict: VerdictAllow}, {Verdict: VerdictAllow, Duties: &Duties{Log: "full"}}, {Verdict: VerdictDrop, Duties: &Duties{Rate: "1/s"}}} {
		if limit, is := d.Limit(); is {
			t.Errorf("%+v is limited: %+v", d, limit)
		}
	}
}
