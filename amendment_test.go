package bocage

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawRuleset draws a ruleset for h1 out of few rows, so that two have much in common.
func drawRuleset(t *rapid.T, generation uint64) *Ruleset {
	some := func(what string, most int) []int {
		picked := rapid.SliceOfNDistinct(rapid.IntRange(0, most-1), 0, most, rapid.ID[int]).Draw(t, what)
		slices.Sort(picked)
		return picked
	}
	small := func(what string) uint32 { return uint32(rapid.IntRange(1, 2).Draw(t, what)) }
	rs := &Ruleset{Generation: generation, Host: "h1", Default: DecisionID(small("default"))}
	if rapid.Bool().Draw(t, "confirm") {
		rs.ConfirmBy = time.Unix(1_700_000_000, 0)
	}
	for _, i := range some("peers", 12) {
		p := Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), Identity: Identity(small("identity")), Group: 20}
		if i > 8 {
			p.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), 128)
		}
		rs.Peers = append(rs.Peers, p)
	}
	for _, i := range some("groups", 6) {
		rs.Groups = append(rs.Groups, GroupInfo{Group: Group(20 + i), Enforce: i%2 == 0, Name: "n", Sender: Group(small("sender"))})
	}
	rules := func(what string) (list []Rule) {
		for _, i := range some(what, 30) {
			list = append(list, Rule{From: Group(i % 3), To: Group(20 + i%4), Protocol: ProtocolTCP,
				Ports: PortRange{First: uint16(10 * i), Last: uint16(10*i + 5)}, Decision: DecisionID(small("decision"))})
		}
		slices.SortFunc(list, CompareRules)
		return list
	}
	rs.Rules, rs.Reasons = rules("rules"), rules("reasons")
	for _, i := range some("decisions", 5) {
		d := Decision{ID: DecisionID(i + 1), Verdict: VerdictAllow, Code: ReasonRule, By: []Ref{{Kind: "Application", Name: "a"}}}
		if small("log") == 1 {
			d.Log, d.Duties, d.Until = true, &Duties{Verify: "tls"}, time.Unix(1_800_000_000, 0)
		}
		rs.Decisions = append(rs.Decisions, d)
	}
	for _, i := range some("refused", 4) {
		rs.Refused = append(rs.Refused, Refusal{Identity: Identity(i), Decision: DecisionID(small("by"))})
	}
	if rapid.Bool().Draw(t, "ports") {
		rs.Ports = []Port{{Interface: "v0", Identity: 1, Group: 20, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, 1})}}}
	}
	rs.Digest = rs.ContentDigest()
	return rs
}

// What an amendment makes of the ruleset before is the ruleset after, whatever it
// went through on its way, and its digest is that of what was made.
func TestAmendmentsLeadThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawRuleset(t, 1), drawRuleset(t, 2)
		if from.Digest == to.Digest != sameContent(from, to) {
			t.Fatalf("digests %s and %s", from.Digest, to.Digest)
		}
		a, err := Difference(from, to)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var sent Amendment
		if err := json.Unmarshal(text, &sent); err != nil {
			t.Fatal(err)
		}
		var had Ruleset // as it was read from what was sent before
		before, err := json.Marshal(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(before, &had); err != nil {
			t.Fatal(err)
		}
		after, err := had.Amend(&sent)
		if err != nil {
			t.Fatal(err)
		}
		if got := after(); !sameContent(got, to) || got.Generation != 2 || !got.ConfirmBy.Equal(to.ConfirmBy) || got.ContentDigest() != to.Digest ||
			got.Copy().ContentDigest() != to.Digest {
			t.Fatalf("%+v, want %+v", got, to)
		}
		f := Flow{Source: netip.AddrFrom4([4]byte{10, 0, 0, 1}), Destination: netip.AddrFrom4([4]byte{10, 0, 0, 2}), Protocol: ProtocolTCP,
			DestinationPort: uint16(rapid.IntRange(0, 300).Draw(t, "port")), At: time.Unix(1_750_000_000, 0)}
		v, reason := after().Decide(f)
		if want, why := to.Decide(f); v != want || reason != why {
			t.Fatalf("%s %+v, want %s %+v", v, reason, want, why)
		}
	})
}

func sameContent(a, b *Ruleset) bool {
	x, y := a.Copy(), b.Copy()
	x.Generation, x.Digest, x.ConfirmBy, y.Generation, y.Digest, y.ConfirmBy = 0, "", time.Time{}, 0, "", time.Time{}
	textX, errX := json.Marshal(x)
	textY, errY := json.Marshal(y)
	null := func(b []byte) string { // no rows are none
		var fields map[string]any
		if json.Unmarshal(b, &fields) != nil {
			return ""
		}
		for name, v := range fields {
			if list, is := v.([]any); v == nil || is && len(list) == 0 {
				delete(fields, name)
			}
		}
		text, err := json.Marshal(fields)
		if err != nil {
			return ""
		}
		return string(text)
	}
	return errX == nil && errY == nil && null(textX) == null(textY)
}

// Whatever is changed in an amendment, or in what it is an amendment of, is found.
func TestAmendmentsOfAnotherContentAreRefused(t *testing.T) {
	make2 := func() (*Ruleset, *Amendment) {
		from := &Ruleset{Generation: 1, Host: "h1", Rules: []Rule{{From: 1, To: 2, Ports: PortRange{1, 2}}, {From: 2, To: 2, Ports: PortRange{1, 2}}}}
		from.Digest = from.ContentDigest()
		to := &Ruleset{Generation: 2, Host: "h1", Rules: []Rule{{From: 1, To: 2, Ports: PortRange{1, 2}}, {From: 3, To: 2, Ports: PortRange{1, 2}}}}
		to.Digest = to.ContentDigest()
		a, err := Difference(from, to)
		if err != nil {
			t.Fatal(err)
		}
		return from, a
	}
	if from, a := make2(); a.Size() != 2 {
		t.Errorf("%d rows differ of %+v", a.Size(), from)
	}
	for name, change := range map[string]func(*Ruleset, *Amendment){
		"nothing":             nil,
		"another base":        func(_ *Ruleset, a *Amendment) { a.FromDigest = "x" },
		"another generation":  func(_ *Ruleset, a *Amendment) { a.From = 7 },
		"another host":        func(_ *Ruleset, a *Amendment) { a.Host = "h2" },
		"backwards":           func(_ *Ruleset, a *Amendment) { a.Generation = 1 },
		"another result":      func(_ *Ruleset, a *Amendment) { a.Digest = "x" },
		"a row that stays":    func(_ *Ruleset, a *Amendment) { a.Rules.Removed = nil },
		"a row that is not":   func(_ *Ruleset, a *Amendment) { a.Rules.Removed[0].From = 9 },
		"another row":         func(_ *Ruleset, a *Amendment) { a.Rules.Added[0].To = 9 },
		"a row that is there": func(rs *Ruleset, a *Amendment) { a.Rules.Added = append(a.Rules.Added, rs.Rules[0]) },
		"a row twice":         func(_ *Ruleset, a *Amendment) { a.Rules.Added = append(a.Rules.Added, a.Rules.Added[0]) },
		"a row gone twice":    func(_ *Ruleset, a *Amendment) { a.Rules.Removed = append(a.Rules.Removed, a.Rules.Removed[0]) },
		"a refusal more":      func(_ *Ruleset, a *Amendment) { a.Refused.Added = []Refusal{{Identity: 1}} },
		"another default":     func(_ *Ruleset, a *Amendment) { a.Rest = &Ruleset{Default: 9} },
	} {
		from, a := make2()
		if change != nil {
			change(from, a)
		}
		if _, err := from.Amend(a); (err != nil) != (change != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every field of a ruleset is in what an amendment leads to: a field to come that was
// left out would never reach a host.
func TestAmendmentsLeaveNothingOut(t *testing.T) {
	fields := reflect.TypeFor[Ruleset]()
	for i := range fields.NumField() {
		f := fields.Field(i)
		if !f.IsExported() || slices.Contains([]string{"Generation", "Digest", "ConfirmBy"}, f.Name) {
			continue
		}
		from, to := &Ruleset{Generation: 1}, &Ruleset{Generation: 2}
		value := reflect.ValueOf(to).Elem().Field(i)
		switch value.Kind() {
		case reflect.Slice:
			value.Set(reflect.MakeSlice(f.Type, 1, 1))
		case reflect.Uint32:
			value.SetUint(7)
		case reflect.String:
			continue // Host, which must be the same
		default:
			t.Fatalf("%s is of a kind that this test cannot fill", f.Name)
		}
		from.Digest, to.Digest = from.ContentDigest(), to.ContentDigest()
		if from.Digest == to.Digest {
			t.Errorf("%s is not in the digest", f.Name)
		}
		a, err := Difference(from, to)
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
			continue
		}
		after, err := from.Amend(a)
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
			continue
		}
		if got := reflect.ValueOf(after()).Elem().Field(i); !reflect.DeepEqual(got.Interface(), value.Interface()) {
			t.Errorf("%s is %v, want %v", f.Name, got, value)
		}
	}
}

func FuzzAmendment(f *testing.F) {
	rs := &Ruleset{Generation: 1, Host: "h1", Rules: []Rule{{From: 1, To: 2}}}
	rs.Digest = rs.ContentDigest()
	f.Add([]byte(`{"from":1,"generation":2,"host":"h1","rules":{"gone":[{"from":1,"to":2}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var a Amendment
		if json.Unmarshal(text, &a) != nil {
			return
		}
		a.FromDigest = rs.Digest
		if after, err := rs.Amend(&a); err == nil && after().ContentDigest() != a.Digest {
			t.Errorf("%s leads to another content than it says", text)
		}
	})
}
