package prove_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

// inhabited is a namespace of workloads, each with its own label app and addresses of
// the families that are asked for.
func inhabited(apps map[string]string) compile.Input {
	in := compile.Input{Now: policytest.Now}
	for _, app := range []string{"web", "db", "red", "old"} {
		families, there := apps[app]
		if !there {
			continue
		}
		i := len(in.Workloads) + 1
		w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: app, Labels: map[string]string{"app": app}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)}}
		if families != "6" {
			w.Spec.Addresses = append(w.Spec.Addresses, netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i)))
		}
		if families != "4" {
			w.Spec.Addresses = append(w.Spec.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i)))
		}
		in.Workloads = append(in.Workloads, w)
	}
	return in
}

func labelled(app string) bocage.Selector {
	return bocage.Selector{MatchLabels: map[string]string{"app": app}}
}

// shop has web consume db.
func shop() []*bocage.Application {
	web := &bocage.Application{TypeMeta: bocage.TypeMeta{Kind: "Application"}, ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web"}}
	web.Spec.Workload, web.Spec.Consumes = labelled("web"), []bocage.Consume{{Service: "db"}}
	db := &bocage.Application{TypeMeta: bocage.TypeMeta{Kind: "Application"}, ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "db"}}
	db.Spec.Workload, db.Spec.Provides = labelled("db"), []bocage.Provide{{Name: "sql", Port: 5432, To: labelled("web")}}
	return []*bocage.Application{web, db}
}

func lines(changes []bocage.ReachChange) []string {
	var out []string
	for _, c := range changes {
		out = append(out, fmt.Sprintf("%s -> %s %s/%s %s %v -> %s %v", c.From, c.To, c.Protocol, c.Ports, c.Before, c.BeforeDuties, c.After, c.AfterDuties))
	}
	return out
}

// TestCompareNamesTheEnds: what tells groups apart before or after names the ends of
// what changes, also where it is gone afterwards.
func TestCompareNamesTheEnds(t *testing.T) {
	one := inhabited(map[string]string{"web": "4", "db": "4", "red": "4"})
	other := one
	one.Applications = shop()
	before, after := compile.Compile(one).Ruleset(), compile.Compile(other).Ruleset()
	if got, want := lines(prove.Compare(before, after)), []string{"shop app=web -> shop app=db TCP/5432 allow [] -> drop []"}; !slices.Equal(got, want) {
		t.Errorf("deleted: %q", got)
	}
	if got, want := lines(prove.Compare(after, before)), []string{"shop app=web -> shop app=db TCP/5432 drop [] -> allow []"}; !slices.Equal(got, want) {
		t.Errorf("declared: %q", got)
	}
}

// TestCompareNamesDuties: who adds a duty is named, and so is who takes one away.
func TestCompareNamesDuties(t *testing.T) {
	one := inhabited(map[string]string{"web": "4", "db": "4"})
	one.Applications = shop()
	other := one
	full := &bocage.Guardrail{TypeMeta: bocage.TypeMeta{Kind: "Guardrail"}, ObjectMeta: bocage.ObjectMeta{Name: "full"}}
	full.Spec.Require = &bocage.Duties{Log: "full"}
	other.Guardrails = []*bocage.Guardrail{full}
	before, after := compile.Compile(one).Ruleset(), compile.Compile(other).Ruleset()
	for _, two := range [][2]*bocage.Ruleset{{before, after}, {after, before}} {
		changes := prove.Compare(two[0], two[1])
		if len(changes) != 1 || changes[0].By.Name != "full" || len(changes[0].BeforeDuties)+len(changes[0].AfterDuties) != 1 {
			t.Errorf("%+v", changes)
		}
	}
}

// TestCompareKeepsFamiliesApart: nobody speaks from one family to the other, so that no
// line says so.
func TestCompareKeepsFamiliesApart(t *testing.T) {
	one := inhabited(map[string]string{"web": "46", "db": "46", "old": "4"})
	other := one
	other.Guardrails = []*bocage.Guardrail{{TypeMeta: bocage.TypeMeta{Kind: "Guardrail"}, ObjectMeta: bocage.ObjectMeta{Name: "out"}}}
	other.Guardrails[0].Spec.Grant = []bocage.CellMatch{{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "old"}}},
		To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("192.0.2.0/24")}}}}
	changes := prove.Compare(compile.Compile(one).Ruleset(), compile.Compile(other).Ruleset())
	if got := lines(changes); len(got) != 1 || changes[0].To == "2001:db8::/32" {
		t.Errorf("%q", got)
	}
}

// TestCompareNamesEachOnce: lines of a comparison are told apart by what they say.
func TestCompareNamesEachOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, other := policytest.Draw(t), policytest.Draw(t)
		other.Workloads = one.Workloads
		changes := prove.Compare(compile.Compile(one).Ruleset(), compile.Compile(other).Ruleset())
		said := map[string]bool{}
		for i, line := range lines(changes) {
			if said[line] {
				t.Fatalf("twice: %s %v", line, changes[i])
			}
			said[line] = true
		}
	})
}
