package bocage

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestConsentKinds holds the two lists of kinds together.
func TestConsentKinds(t *testing.T) {
	for _, kind := range Kinds() {
		_, depends := ConsentOf(kind.New())
		if want := depends || kind.Name == "Guardrail" || kind.Name == "Exception"; Approvable(kind.Name) != want {
			t.Errorf("%s: approvable %v, want %v", kind.Name, !want, want)
		}
	}
}

// TestAsAgreed: while a declaration waits, the one before counts, or none.
func TestAsAgreed(t *testing.T) {
	zone := func(a *Approval, kept *ZoneSpec) *Zone {
		return &Zone{ObjectMeta: ObjectMeta{Name: "a", Generation: 2}, Spec: ZoneSpec{Hosts: []string{"new"}}, Status: ZoneStatus{Approval: a, Approved: kept}}
	}
	for _, test := range []struct {
		name string
		of   Resource
		want string // the host; empty: nothing counts
	}{
		{"nobody has to", zone(nil, nil), "new"},
		{"it is approved", zone(&Approval{Generation: 2}, nil), "new"},
		{"it waits", zone(&Approval{Generation: 1}, &ZoneSpec{Hosts: []string{"old"}}), "old"},
		{"it is new", zone(&Approval{}, nil), ""},
	} {
		counts := AsAgreed(test.of)
		if counts == nil {
			if test.want != "" {
				t.Errorf("%s: nothing counts", test.name)
			}
			continue
		}
		if hosts := counts.(*Zone).Spec.Hosts; !slices.Equal(hosts, []string{test.want}) {
			t.Errorf("%s: %v counts", test.name, hosts)
		}
		if test.of.(*Zone).Spec.Hosts[0] != "new" {
			t.Errorf("%s: the object itself was changed", test.name)
		}
	}
	g := &Guardrail{Status: GuardrailStatus{Approval: &Approval{Generation: 7}}}
	if AsAgreed(g) != Resource(g) {
		t.Error("a guardrail says itself what is in force")
	}
}

// reachOfMany is that of guardrails which name all that there is to name.
func reachOfMany() Reach {
	groups := func(name string) Side { return Side{AddressGroups: []string{name}} }
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return ReachOf([]*Guardrail{
		{Spec: GuardrailSpec{Match: CellMatch{From: groups("match")}, Never: []CellMatch{{To: groups("never")}}, Grant: []CellMatch{{To: groups("grant")}},
			Protect: []CellMatch{{From: groups("protect")}}, BlastRadius: &BlastRadius{From: groups("blast")}, Require: &Duties{Inspect: "sql"}}},
		{ObjectMeta: ObjectMeta{Generation: 2}, Spec: GuardrailSpec{Never: []CellMatch{{To: groups("waits")}}}, Status: GuardrailStatus{Approval: &Approval{
			Generation: 1, Approved: &GuardrailSpec{Never: []CellMatch{{To: groups("holds")}}}}}},
	}, []*Exception{
		{Spec: ExceptionSpec{Match: CellMatch{To: groups("excepted")}, Until: now.Add(time.Hour)}},
		{Spec: ExceptionSpec{Match: CellMatch{To: groups("over")}, Until: now}},
	}, nil, now)
}

// TestWeakens lists which changes two people decide about.
func TestWeakens(t *testing.T) {
	reach := reachOfMany()
	scope := func(mode string, namespaces []string, selector Selector) Resource {
		return &Scope{Spec: ScopeSpec{Mode: mode, Namespaces: namespaces, Workload: selector}}
	}
	labels := func(pairs ...string) Selector {
		s := Selector{MatchLabels: map[string]string{}}
		for i := 0; i < len(pairs); i += 2 {
			s.MatchLabels[pairs[i]] = pairs[i+1]
		}
		return s
	}
	in := func(operator string, values ...string) Selector {
		return Selector{MatchExpressions: []Requirement{{"a", operator, values}}}
	}
	group := func(name string, prefixes ...string) Resource {
		g := &AddressGroup{ObjectMeta: ObjectMeta{Name: name}}
		for _, p := range prefixes {
			g.Spec.Addresses = append(g.Spec.Addresses, netip.MustParsePrefix(p))
		}
		return g
	}
	profile := func(name, signatures, failMode string) Resource {
		return &InspectionProfile{ObjectMeta: ObjectMeta{Name: name}, Spec: InspectionProfileSpec{Signatures: signatures, FailMode: failMode}}
	}
	zone := func(hosts ...string) Resource {
		return &Zone{ObjectMeta: ObjectMeta{Name: "z"}, Spec: ZoneSpec{Hosts: hosts}}
	}
	everyone := Selector{}
	const enforce, observe = ModeEnforce, ModeObserve
	for _, test := range []struct {
		name          string
		before, after Resource
		two           bool
	}{
		{"a scope that enforces comes", nil, scope(enforce, nil, everyone), false},
		{"one that observes comes", nil, scope(observe, nil, everyone), false},
		{"one that observes goes", scope(observe, nil, everyone), nil, false},
		{"one begins to enforce", scope(observe, nil, everyone), scope(enforce, nil, everyone), false},
		{"one ceases to", scope(enforce, nil, everyone), scope(observe, nil, everyone), true},
		{"one that enforces goes", scope(enforce, nil, everyone), nil, true},
		{"fewer namespaces", scope(enforce, []string{"a", "b"}, everyone), scope(enforce, []string{"a"}, everyone), true},
		{"more namespaces", scope(enforce, []string{"a"}, everyone), scope(enforce, []string{"b", "a"}, everyone), false},
		{"all namespaces", scope(enforce, []string{"a"}, everyone), scope(enforce, nil, everyone), false},
		{"not all of them", scope(enforce, nil, everyone), scope(enforce, []string{"a"}, everyone), true},
		{"one label more", scope(enforce, nil, labels("a", "1")), scope(enforce, nil, labels("a", "1", "b", "2")), true},
		{"one label less", scope(enforce, nil, labels("a", "1", "b", "2")), scope(enforce, nil, labels("a", "1")), false},
		{"another value", scope(enforce, nil, labels("a", "1")), scope(enforce, nil, labels("a", "2")), true},
		{"one value of a list", scope(enforce, nil, labels("a", "1")), scope(enforce, nil, in("In", "1", "2")), false},
		{"a shorter list", scope(enforce, nil, in("In", "1", "2")), scope(enforce, nil, in("In", "1")), true},
		{"fewer left out", scope(enforce, nil, in("NotIn", "1", "2")), scope(enforce, nil, in("NotIn", "1")), false},
		{"more left out", scope(enforce, nil, in("NotIn", "1")), scope(enforce, nil, in("NotIn", "1", "2")), true},
		{"any value", scope(enforce, nil, in("In", "1")), scope(enforce, nil, in("Exists")), false},
		{"none", scope(enforce, nil, in("DoesNotExist")), scope(enforce, nil, in("DoesNotExist")), false},
		{"not none", scope(enforce, nil, in("DoesNotExist")), scope(enforce, nil, in("Exists")), true},

		{"never: addresses come", group("never", "10.0.0.0/9"), group("never", "10.0.0.0/8", "192.0.2.0/24"), false},
		{"never: addresses go", group("never", "10.0.0.0/8"), group("never", "10.0.0.0/9"), true},
		{"never: it goes", group("never", "10.0.0.0/8"), nil, true},
		{"never: it comes", nil, group("never", "10.0.0.0/8"), false},
		{"match: addresses go", group("match", "10.0.0.0/8"), group("match", "10.0.0.0/9"), true},
		{"blastRadius: addresses go", group("blast", "10.0.0.0/8"), group("blast", "10.0.0.0/9"), true},
		{"grant: addresses go", group("grant", "10.0.0.0/8"), group("grant", "10.0.0.0/9"), false},
		{"grant: addresses come", group("grant", "10.0.0.0/9"), group("grant", "10.0.0.0/8"), true},
		{"grant: it comes", nil, group("grant", "10.0.0.0/8"), true},
		{"grant: it goes", group("grant", "10.0.0.0/8"), nil, false},
		{"protect: addresses go", group("protect", "10.0.0.0/8"), group("protect", "10.0.0.0/9"), true},
		{"protect: addresses come", group("protect", "10.0.0.0/9"), group("protect", "10.0.0.0/8"), true},
		{"an exception: addresses come", group("excepted", "10.0.0.0/9"), group("excepted", "10.0.0.0/8"), true},
		{"an exception: addresses go", group("excepted", "10.0.0.0/8"), group("excepted", "10.0.0.0/9"), false},
		{"an exception that is over", group("over", "10.0.0.0/9"), group("over", "10.0.0.0/8"), false},
		{"a guardrail that waits", group("waits", "10.0.0.0/8"), group("waits", "10.0.0.0/9"), true},
		{"what holds while it waits", group("holds", "10.0.0.0/8"), group("holds", "10.0.0.0/9"), true},
		{"nobody names it", group("other", "10.0.0.0/8"), nil, false},
		{"in another order", group("never", "10.0.0.0/8", "192.0.2.0/24"), group("never", "192.0.2.0/24", "10.0.0.0/8"), false},
		{"the other family", group("never", "10.0.0.0/8"), group("never", "::/0"), true},

		{"other signatures", profile("sql", "alert a", ""), profile("sql", "alert b", ""), true},
		{"it fails open", profile("sql", "alert a", ""), profile("sql", "alert a", "open"), true},
		{"it fails closed", profile("sql", "alert a", "open"), profile("sql", "alert a", "closed"), false},
		{"it says how it fails", profile("sql", "alert a", ""), profile("sql", "alert a", "closed"), false},
		{"a profile goes", profile("sql", "alert a", ""), nil, true},
		{"a profile comes back", nil, profile("sql", "alert a", ""), true},
		{"a profile of nobody", profile("other", "alert a", ""), profile("other", "alert b", "open"), false},

		{"zones, and nobody picks by them", zone("h1"), zone(), false},
		{"nothing", nil, nil, false},
		{"another kind", &Response{}, nil, false},
	} {
		if why := reach.Weakens(test.before, test.after); (why != "") != test.two {
			t.Errorf("%s: two people decide %v (%s)", test.name, why != "", why)
		}
	}
	byZone := &Selector{MatchExpressions: []Requirement{{LabelZone, "Exists", nil}}}
	for name, reach := range map[string]Reach{
		"separate":  ReachOf([]*Guardrail{{Spec: GuardrailSpec{Separate: &Separate{By: "zone"}}}}, nil, nil, time.Time{}),
		"never":     ReachOf([]*Guardrail{{Spec: GuardrailSpec{Never: []CellMatch{{To: Side{Workload: byZone}}}}}}, nil, nil, time.Time{}),
		"exception": ReachOf(nil, []*Exception{{Spec: ExceptionSpec{Match: CellMatch{From: Side{Workload: byZone}}, Until: time.Now()}}}, nil, time.Time{}),
		"scope":     ReachOf(nil, nil, []*Scope{{Spec: ScopeSpec{Mode: enforce, Workload: *byZone}}}, time.Time{}),
		"scope that ceases": ReachOf(nil, nil, []*Scope{{ObjectMeta: ObjectMeta{Generation: 2}, Spec: ScopeSpec{Mode: observe},
			Status: ScopeStatus{Approval: &Approval{Generation: 1}, Approved: &ScopeSpec{Mode: enforce, Workload: *byZone}}}}, time.Time{}),
	} {
		for _, change := range [][2]Resource{{zone("h1"), zone()}, {zone("h1"), zone("h1", "h2")}, {zone("h1"), nil}, {nil, zone("h1")}} {
			if reach.Weakens(change[0], change[1]) == "" {
				t.Errorf("%s by zone: one person decides", name)
			}
		}
		if why := reach.Weakens(zone("h1", "h2"), zone("h2", "h1", "h2")); why != "" {
			t.Errorf("%s by zone, and nothing changes: %s", name, why)
		}
	}
}

// TestWeakensNothing: where one person decides, nobody and no address that was in
// reach is out of it.
func TestWeakensNothing(t *testing.T) {
	values := []string{"1", "2", "3"}
	requirement := rapid.Custom(func(t *rapid.T) Requirement {
		r := Requirement{Key: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key"), Operator: rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")}
		if r.Operator == "In" || r.Operator == "NotIn" {
			r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom(values), 1, 3, rapid.ID).Draw(t, "values")
		}
		return r
	})
	scope := rapid.Custom(func(t *rapid.T) *Scope {
		s := &Scope{Spec: ScopeSpec{Mode: rapid.SampledFrom([]string{ModeEnforce, ModeEnforce, ModeObserve}).Draw(t, "mode"),
			Namespaces: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y"}), 0, 2, rapid.ID).Draw(t, "namespaces")}}
		s.Spec.Workload.MatchExpressions = rapid.SliceOfN(requirement, 0, 2).Draw(t, "expressions")
		if rapid.Bool().Draw(t, "labelled") {
			s.Spec.Workload.MatchLabels = map[string]string{"a": rapid.SampledFrom(values).Draw(t, "value")}
		}
		return s
	})
	picks := func(s *Scope, namespace string, labels map[string]string) bool {
		return s.Spec.Mode == ModeEnforce && (len(s.Spec.Namespaces) == 0 || slices.Contains(s.Spec.Namespaces, namespace)) && s.Spec.Workload.Matches(labels)
	}
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address")}), rapid.IntRange(24, 32).Draw(t, "bits")).Masked()
	})
	reach := reachOfMany()
	has := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	rapid.Check(t, func(t *rapid.T) {
		before, after := scope.Draw(t, "before"), scope.Draw(t, "after")
		if reach.Weakens(before, after) == "" {
			for _, namespace := range []string{"x", "y", "z"} {
				for _, a := range append(values, "") {
					for _, b := range append(values, "") {
						labels := map[string]string{}
						if a != "" {
							labels["a"] = a
						}
						if b != "" {
							labels["b"] = b
						}
						if picks(before, namespace, labels) && !picks(after, namespace, labels) {
							t.Fatalf("%s %v is out of reach", namespace, labels)
						}
					}
				}
			}
		}
		for _, name := range []string{"never", "grant", "protect"} {
			was := &AddressGroup{ObjectMeta: ObjectMeta{Name: name}, Spec: AddressGroupSpec{Addresses: rapid.SliceOfN(prefix, 1, 3).Draw(t, "was")}}
			is := &AddressGroup{ObjectMeta: ObjectMeta{Name: name}, Spec: AddressGroupSpec{Addresses: rapid.SliceOfN(prefix, 1, 3).Draw(t, "is")}}
			if reach.Weakens(was, is) != "" {
				continue
			}
			for last := range 256 {
				a := netip.AddrFrom4([4]byte{10, 0, 0, byte(last)})
				if name != "grant" && has(was.Spec.Addresses, a) && !has(is.Spec.Addresses, a) {
					t.Fatalf("%s: %s went", name, a)
				}
				if name != "never" && has(is.Spec.Addresses, a) && !has(was.Spec.Addresses, a) {
					t.Fatalf("%s: %s came", name, a)
				}
			}
		}
	})
}
