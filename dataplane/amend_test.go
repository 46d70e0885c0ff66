package dataplane

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// drawAmended draws a ruleset that the dataplane takes, out of few rows, so that two
// have much in common.
func drawAmended(t *rapid.T, generation uint64) *bocage.Ruleset {
	some := func(what string, most int) []int {
		picked := rapid.SliceOfNDistinct(rapid.IntRange(0, most-1), 0, most, rapid.ID[int]).Draw(t, what)
		slices.Sort(picked)
		return picked
	}
	small := func(what string) uint32 { return uint32(rapid.IntRange(1, 2).Draw(t, what)) }
	rs := &bocage.Ruleset{Generation: generation, Host: "h1", Default: 1}
	for id := range bocage.DecisionID(2) {
		rs.Decisions = append(rs.Decisions, bocage.Decision{ID: id + 1, Verdict: bocage.VerdictAllow, Code: bocage.ReasonCode(small("code"))})
	}
	var more []bocage.DecisionID
	for _, i := range some("decisions", 4) {
		d := bocage.Decision{ID: bocage.DecisionID(10 + i), Verdict: bocage.VerdictDrop, Code: bocage.ReasonThreat}
		if small("ends") == 1 {
			d.Until, d.Then = time.Unix(2_000_000_000, 0), bocage.DecisionID(small("then"))
			if len(more) > 0 {
				d.Then = more[0]
			}
		}
		rs.Decisions, more = append(rs.Decisions, d), append(more, d.ID)
	}
	decision := func() bocage.DecisionID {
		return rapid.SampledFrom(append([]bocage.DecisionID{1, 2}, more...)).Draw(t, "decision")
	}
	for _, i := range some("peers", 12) {
		p := bocage.Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i)}), 16+i%4*4), Identity: bocage.Identity(small("identity")), Group: 20}
		p.Prefix = p.Prefix.Masked()
		if !slices.ContainsFunc(rs.Peers, func(o bocage.Peer) bool { return o.Prefix == p.Prefix }) {
			rs.Peers = append(rs.Peers, p)
		}
	}
	slices.SortFunc(rs.Peers, func(a, b bocage.Peer) int { return a.Prefix.Compare(b.Prefix) })
	for _, i := range some("groups", 6) {
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: bocage.Group(20 + i), Enforce: small("enforce") == 1, Sender: bocage.Group(small("sender"))})
	}
	rules := func(what string) (list []bocage.Rule) {
		for _, i := range some(what, 24) {
			list = append(list, bocage.Rule{From: bocage.Group(i % 3), To: bocage.Group(20 + i%4), Protocol: bocage.ProtocolTCP,
				Ports: bocage.PortRange{First: uint16(10 * i), Last: uint16(10*i) + uint16(small("ports"))}, Decision: decision()})
		}
		slices.SortFunc(list, bocage.CompareRules)
		return list
	}
	rs.Rules, rs.Reasons = rules("rules"), rules("reasons")
	for _, i := range some("refused", 4) {
		rs.Refused = append(rs.Refused, bocage.Refusal{Identity: bocage.Identity(i), Decision: decision()})
	}
	rs.Digest = rs.ContentDigest()
	return rs
}

// After an amendment the dataplane holds what it would hold after the whole: nothing
// differs any more, and the rows that either wrote are the same.
func TestAmendmentsAreApplied(t *testing.T) {
	now := clock{ns: 1, wall: time.Unix(1_900_000_000, 0)}
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawAmended(t, 1), drawAmended(t, 2)
		a, err := bocage.Difference(from, to)
		if err != nil {
			t.Fatal(err)
		}
		change, ok := ChangeOf(a)
		if !ok {
			t.Fatal("not to be told by a change")
		}
		amended, applied := newContent(nameKey{}), newContent(nameKey{})
		for _, c := range []*content{amended, applied} {
			e, err := c.read(from, lists{})
			if err != nil {
				t.Fatal(err)
			}
			c.change(e, now)
		}
		e, err := amended.readChange(change)
		if err != nil {
			t.Fatal(err)
		}
		rows, _ := amended.change(e, now)
		whole, err := applied.read(to, listsOf(from))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := applied.change(whole, now)
		for key, row := range want.cells {
			if rows.cells[key] != row {
				t.Fatalf("cell %+v is %+v, want %+v", key, rows.cells[key], row)
			}
		}
		nothing := lists{unknown[bocage.Peer](), unknown[bocage.Rule](), unknown[bocage.Rule](), unknown[bocage.GroupInfo](),
			unknown[bocage.Decision](), nil, unknown[bocage.Refusal](), nil}
		if left, err := amended.read(to, nothing); err != nil || !left.onlyRefused() || len(left.refused) > 0 {
			t.Fatalf("differs from the whole: %+v, %v", left, err)
		}
		if amended.header(0) != applied.header(0) || amended.cells != applied.cells {
			t.Fatalf("header %+v, want %+v", amended.header(0), applied.header(0))
		}
	})
}

// Clocks that move against each other little by little, each time by less than what
// counts, move no end of anything by more than that.
func TestSmallMovesOfClocksDoNotAddUp(t *testing.T) {
	until := time.Unix(1_900_001_000, 0)
	rs := &bocage.Ruleset{Generation: 1, Default: 1, Decisions: []bocage.Decision{{ID: 1, Verdict: bocage.VerdictDrop}, {ID: 2, Verdict: bocage.VerdictAllow, Until: until, Then: 1}},
		Rules:   []bocage.Rule{{From: 1, To: 2, Ports: bocage.PortRange{First: 1, Last: 1}, Decision: 2}},
		Refused: []bocage.Refusal{{Identity: 17, Decision: 1, Until: until}}}
	for _, step := range []time.Duration{clockError / 8, -clockError / 8, clockError / 3, -3 * clockError} {
		c := newContent(nameKey{})
		e, err := c.read(rs, lists{})
		must(t, err)
		now := clock{ns: 1e9, wall: time.Unix(1_900_000_000, 0)}
		rows, _ := c.change(e, now)
		cut, ends := rows.refused[17].Until, rows.successions[2].Until
		for i := range 40 {
			now = clock{ns: now.ns + 1e9, wall: now.wall.Add(time.Second + step)}
			e, err := c.readChange(Change{Generation: uint64(2 + i)})
			must(t, err)
			rows, _ := c.change(e, now)
			if row, written := rows.refused[17]; written {
				cut = row.Until
			}
			if row, written := rows.successions[2]; written {
				ends = row.Until
			}
			for name, is := range map[string]uint64{"a refusal": cut, "a decision": ends} {
				if off := time.Duration(int64(is) - now.monotonic(until)).Abs(); off > clockError/2 {
					t.Fatalf("after %d steps of %s, %s ends %s off", i+1, step, name, off)
				}
			}
		}
	}
}

// A decision that something goes on naming does not go.
func TestAmendmentsThatLeaveGapsAreRefused(t *testing.T) {
	c := newContent(nameKey{})
	rs := &bocage.Ruleset{Generation: 1, Default: 1, Decisions: []bocage.Decision{
		{ID: 1, Verdict: bocage.VerdictDrop}, {ID: 2, Verdict: bocage.VerdictAllow, Until: time.Unix(2_000_000_000, 0), Then: 3}, {ID: 3, Verdict: bocage.VerdictDrop}},
		Rules: []bocage.Rule{{From: 1, To: 2, Ports: bocage.PortRange{First: 1, Last: 1}, Decision: 2}}}
	e, err := c.read(rs, lists{})
	must(t, err)
	c.change(e, clock{ns: 1, wall: time.Unix(1, 0)})
	for name, change := range map[string]Change{
		"the default":                {DecisionsGone: []bocage.DecisionID{1}},
		"a rule's":                   {DecisionsGone: []bocage.DecisionID{2}},
		"what another gives way to":  {DecisionsGone: []bocage.DecisionID{3}},
		"a reason that is not there": {ReasonsGone: rs.Rules},
		"a reason without decision":  {ReasonsCome: []bocage.Rule{{From: 1, To: 2, Decision: 9}}},
	} {
		if _, err := c.readChange(change); err == nil {
			t.Errorf("%s may go", name)
		}
	}
}
