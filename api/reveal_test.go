package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

// testOf is a PolicyTest in a namespace with one case.
func testOf(namespace, name, ends string) string {
	return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"PolicyTest","metadata":{"name":%q,"namespace":%q},"spec":{"blocks":true,"cases":[{%s,"port":80,"expect":{"reach":"allow"}}]}}`,
		name, namespace, ends)
}

// TestForeignTests: who is held to namespaces tests flows of which one end is theirs,
// and nothing else, whichever way they write or ask.
func TestForeignTests(t *testing.T) {
	asked := 0
	b := start(t, func(c *Config) {
		c.Functions.Test = func(_ context.Context, objects []bocage.Resource) ([]bocage.TestResult, error) {
			asked++
			return []bocage.TestResult{{Test: "shop/t", Case: "cases[0]"}}, nil
		}
		c.Functions.Plan = func(context.Context, []bocage.Resource) (bocage.PlanResult, error) {
			asked++
			return bocage.PlanResult{}, nil
		}
	})
	ctx := t.Context()
	owner, admin := b.as(t, RoleOwner, "shop", "cart"), b.as(t, RolePolicyAdmin)
	for _, test := range []struct {
		ends string
		own  bool
	}{
		{`"from":"shop/web","to":"x/b"`, true},
		{`"from":"dev/red","to":"shop/db"`, true},
		{`"from":"dev/red","to":"cart/db"`, true},
		{`"from":"10.0.0.1","to":"shop/db"`, true},
		{`"from":"shop/web","to":"example.com"`, true},
		{`"fromAll":{},"to":"shop/db"`, true},
		{`"fromAll":{"namespaces":["shop","cart"]},"toAll":{}`, true},
		{`"from":"dev/red","to":"x/b"`, false},
		{`"from":"10.0.0.1","to":"x/b"`, false},
		{`"from":"10.0.0.1","to":"10.0.0.2"`, false},
		{`"fromAll":{"namespaces":["shop","dev"]},"to":"x/b"`, false},
		{`"fromAll":{"workload":{"matchLabels":{"ns":"shop"}}},"toAll":{}`, false},
		{`"fromAll":{"external":["10.0.0.0/8"]},"to":"x/b"`, false},
		{`"from":"dev/red","to":"x/b","port":80,"expect":{"reach":"allow"}},{"from":"shop/web","to":"shop/db"`, false},
	} {
		text := testOf("shop", "t", test.ends)
		allowed := func(what string, err error) {
			t.Helper()
			if test.own && err != nil || !test.own && (err == nil || !strings.Contains(err.Error(), "neither end is")) {
				t.Errorf("%s of %s: %v", what, test.ends, err)
			}
		}
		documents := documents(t, text)
		before := asked
		_, err := owner.Test(ctx, documents)
		allowed("a dry test", err)
		_, err = owner.Plan(ctx, documents)
		allowed("a plan", err)
		if (asked > before) != test.own {
			t.Errorf("%s: the room was asked %d times", test.ends, asked-before)
		}
		_, err = owner.Apply(ctx, documents, client.WriteOptions{})
		allowed("an apply", err)
		if !test.own {
			if _, err := admin.Apply(ctx, documents, client.WriteOptions{Force: true}); err != nil {
				t.Errorf("whoever writes tests everywhere: %v", err)
			}
			// What is there may be labelled, and not be changed.
			_, err = owner.Patch(ctx, kind("PolicyTest"), "shop", "t", "", map[string]any{"metadata": map[string]any{"labels": map[string]any{"a": "b"}}}, client.WriteOptions{})
			if err != nil {
				t.Errorf("a label: %v", err)
			}
			_, err = owner.Patch(ctx, kind("PolicyTest"), "shop", "t", "", map[string]any{"spec": map[string]any{"blocks": false}}, client.WriteOptions{})
			allowed("a patch", err)
		}
		if _, err := admin.Delete(ctx, kind("PolicyTest"), "shop", "t", client.WriteOptions{}); err != nil && !client.HasReason(err, client.ReasonNotFound) {
			t.Fatal(err)
		}
	}
}

// TestNameLikeANamespace: a DNS name, or what is no end at all, is in no namespace.
func TestNameLikeANamespace(t *testing.T) {
	b := start(t, func(c *Config) { c.Functions = answers() })
	owner := b.as(t, RoleOwner, "shop")
	for _, q := range []bocage.ExplainQuery{{From: "dev/red", To: "shop"}, {From: "shop", To: "x/b"}, {From: "", To: "shop"}} {
		q.Protocol = bocage.ProtocolTCP
		if _, err := owner.Explain(t.Context(), q); err == nil || q.From != "" && !strings.Contains(err.Error(), "cannot explain") {
			t.Errorf("%s to %s: %v", q.From, q.To, err)
		}
	}
	if _, err := owner.Blast(t.Context(), bocage.BlastQuery{From: "shop"}); err == nil || !strings.Contains(err.Error(), "cannot ask") {
		t.Errorf("a blast from a name: %v", err)
	}
}

// TestRevealed: what people who are held to namespaces are told of others' flows by
// records, tests, plans and events: nothing that explain would not tell.
func TestRevealed(t *testing.T) {
	secret := "dev/red -> x/b"
	plan := bocage.PlanResult{
		Findings: bocage.Faults{{Field: "Application dev/red spec", Message: secret}, {Field: "Guardrail pci spec", Message: secret},
			{Field: "Application shop/web spec.consumes[0]", Message: "is seen"}, {Message: "is said"}},
		Proofs:   []bocage.Proof{{Statement: "s", Counterexample: secret}},
		Reach:    []bocage.ReachChange{{From: "dev app=red", To: "x app=b"}, {From: "dev app=red", To: "shop app=db"}, {From: "everyone else", To: "x app=b"}},
		Enforced: []string{"dev/red", "shop/web"}, Observed: []string{"dev/red"},
		NewlyRefused: []bocage.PlannedEdge{{Edge: bocage.Edge{Source: "dev/red", Destination: "x/b"}}, {Edge: bocage.Edge{Source: "dev/red", Destination: "shop/db"}}},
		Tests:        []bocage.TestResult{{Test: "dev/t", Case: "cases[0]", Got: secret}, {Test: "shop/foreign", Case: "cases[0]", Got: secret}, {Test: "shop/own", Case: "cases[0]", Got: "is shown"}},
		Cut:          []bocage.CutSession{{Host: "secret"}},
	}
	b := start(t, func(c *Config) {
		c.Functions.Plan = func(context.Context, []bocage.Resource) (bocage.PlanResult, error) { return plan, nil }
		c.Functions.Test = func(context.Context, []bocage.Resource) ([]bocage.TestResult, error) {
			return slices.Clone(plan.Tests), nil
		}
		c.Functions.Blast = func(context.Context, bocage.BlastQuery) (bocage.BlastResult, error) {
			return bocage.BlastResult{From: []string{"shop/web"}, Total: 9, Weight: 3, Reached: []bocage.BlastTarget{
				{Workload: "dev/red", Hops: 1, Path: []string{"shop/web", "dev/red"}}, {Workload: "x/b", Hops: 2, Path: []string{"shop/web", "dev/red", "x/b"}}}}, nil
		}
	})
	ctx := t.Context()
	for _, text := range []string{testOf("shop", "foreign", `"from":"dev/red","to":"x/b"`), testOf("shop", "own", `"from":"shop/web","to":"x/b"`), testOf("dev", "t", `"from":"dev/red","to":"x/b"`)} {
		if _, err := b.client.Apply(ctx, documents(t, text), client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	failed := []bocage.Condition{{Type: "Passed", Status: "False", Reason: "Failed", Message: secret}}
	put := func(kind bocage.Kind, resource bocage.Resource) {
		t.Helper()
		value, err := store.EncodeObject(kind, resource)
		if err != nil {
			t.Fatal(err)
		}
		meta := resource.Meta()
		if _, err := b.store.Apply(ctx, store.Op{Key: kind.Key(meta.Namespace, meta.Name), Value: value, IfWas: store.AnyRevision}); err != nil {
			t.Fatal(err)
		}
	}
	object, err := b.client.Get(ctx, kind("PolicyTest"), "shop", "foreign")
	if err != nil {
		t.Fatal(err)
	}
	foreign := object.(*bocage.PolicyTest)
	foreign.ResourceVersion = ""
	foreign.Status = bocage.PolicyTestStatus{Failed: []string{secret}, Conditions: failed}
	put(kind("PolicyTest"), foreign)
	put(kind("Generation"), &bocage.Generation{ObjectMeta: bocage.ObjectMeta{Name: "g7", UID: "7"}, Status: bocage.GenerationStatus{Number: 7,
		Changed:    []string{"Application dev/red", "Application shop/web", "Guardrail pci", "Quarantine qdev", "Host h1", "Namespace dev", "Namespace shop", "Decoy d"},
		Proofs:     []bocage.Proof{{Statement: "s", Counterexample: secret}},
		Conditions: []bocage.Condition{{Type: "Proved", Status: "False", Reason: "Blocked", Message: secret}}}})
	put(kind("Event"), &bocage.ObjectEvent{ObjectMeta: bocage.ObjectMeta{Name: "e", Namespace: "shop", UID: "8"}, Message: secret,
		InvolvedObject: bocage.ObjectReference{Kind: "Generation", Name: "g7"}})

	for _, role := range []Role{RoleOwner, RoleViewer} {
		token, err := b.client.CreateSession(ctx, client.Person{Name: "tester", Role: string(role), Namespaces: []string{"shop"}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		who := b.withToken(t, token.Token)
		var shown []string
		note := func(value any, err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
			text, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			shown = append(shown, string(text))
		}
		for _, ask := range []struct{ kind, namespace, name string }{{"PolicyTest", "shop", "foreign"}, {"Generation", "", "g7"}, {"Event", "shop", "e"}} {
			note(who.Get(ctx, kind(ask.kind), ask.namespace, ask.name))
			list, _, err := who.List(ctx, kind(ask.kind), client.ListOptions{Namespace: ask.namespace})
			note(list, err)
			watching, cancel := context.WithCancel(ctx)
			if err := who.Watch(watching, kind(ask.kind), client.ListOptions{Namespace: ask.namespace}, func(e client.Event) error {
				note(e.Object, nil)
				if e.Object.Meta().Name == ask.name {
					cancel()
				}
				return nil
			}); err != nil && watching.Err() == nil {
				t.Error(err)
			}
			cancel()
		}
		if role == RoleOwner {
			note(who.Plan(ctx, documents(t, "apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: web, namespace: shop}\nspec: {workload: {}}\n")))
			if text := shown[len(shown)-1]; strings.Contains(text, "everyone else") || strings.Contains(text, `"secret"`) || strings.Contains(text, `"Observed"`) ||
				!strings.Contains(text, "is seen") || !strings.Contains(text, "is said") || !strings.Contains(text, "is shown") || !strings.Contains(text, "shop/db") || strings.Contains(text, `"enforced":["dev`) {
				t.Errorf("a plan tells %s", text)
			}
		}
		note(who.Test(ctx, nil))
		if text := shown[len(shown)-1]; !strings.Contains(text, "is shown") {
			t.Errorf("%s learns nothing of their own test: %s", role, text)
		}
		blast, err := who.Blast(ctx, bocage.BlastQuery{From: "shop/web"})
		note(blast, err)
		if len(blast.Reached) != 1 || blast.Weight != 0 {
			t.Errorf("a blast tells %+v", blast)
		}
		for _, text := range shown {
			if strings.Contains(text, secret) || strings.Contains(text, "Application dev/red") || strings.Contains(text, "qdev") || strings.Contains(text, "dev/red -\\u003e") {
				t.Errorf("%s is told %s", role, text)
			}
		}
	}
	generation, err := b.as(t, RoleOwner, "shop").Get(ctx, kind("Generation"), "", "g7")
	if err != nil || fmt.Sprint(generation.(*bocage.Generation).Status.Changed) != "[Application shop/web Guardrail pci Namespace shop 5 that are not shown]" {
		t.Errorf("%+v, %v", generation, err)
	}
	whole, err := b.as(t, RoleViewer).Get(ctx, kind("Generation"), "", "g7")
	if err != nil || len(whole.(*bocage.Generation).Status.Changed) != 8 || whole.(*bocage.Generation).Status.Conditions[0].Message != secret {
		t.Errorf("whoever reads everything: %+v, %v", whole, err)
	}
}

// TestExplainedToOwners: what policy says of somebody's own flow, without the objects of
// others that say it.
func TestExplainedToOwners(t *testing.T) {
	told := bocage.Explanation{
		Source: bocage.Peer{Workload: "shop/web", Host: "h1"}, Destination: bocage.Peer{Workload: "bank/vault", Host: "secret-host"}, Generation: 7,
		Verdict: bocage.VerdictDrop, Decider: bocage.Ref{Kind: "Quarantine", Name: "secret-quarantine", Source: "secret.yaml:3"},
		Layers: []bocage.Layer{
			{Name: "base", By: []bocage.Ref{{Kind: "Application", Namespace: "bank", Name: "secret-app", Field: "spec.provides[0]", Source: "secret.yaml:9"}, {Kind: "Application", Namespace: "shop", Name: "web", Source: "shop.yaml:1"}},
				Result: `no contract allows it: default deny, unless something below does. Nearly: bank/secret-app provides "secret-port" there`},
			{Name: "guardrails", By: []bocage.Ref{{Kind: "Guardrail", Name: "pci"}}, Result: "no objection"},
			{Name: "threat", By: []bocage.Ref{{Kind: "ThreatCondition", Name: "secret-threat"}, {Kind: "ThreatCondition", Name: "secret-other"}}, Result: "tightened: high of zone secret-zone"},
			{Name: "quarantine", By: []bocage.Ref{{Kind: "Quarantine", Name: "secret-quarantine"}}, Result: "refused: quarantine"},
			{Name: "disposition", Result: "dropped in silence: Application bank/secret-app asks for a decoy, and none stands there"},
		},
		Duties:    []bocage.Duty{{Duty: "log", By: bocage.Ref{Kind: "Application", Namespace: "bank", Name: "secret-app"}}},
		Elsewhere: []bocage.Elsewhere{{Decider: bocage.Ref{Kind: "Response", Name: "secret-response"}}},
		Missing:   "withdraw Quarantine secret-quarantine",
	}
	b := start(t, func(c *Config) {
		c.Functions.Explain = func(_ context.Context, q bocage.ExplainQuery) (bocage.Explanation, error) {
			for _, end := range []struct{ field, name string }{{"from", q.From}, {"to", q.To}} {
				switch end.name {
				case "shop/none", "bank/none":
					return bocage.Explanation{}, bocage.Faults{{Field: end.field, Message: end.name + " is neither an address nor a workload that was declared"}}
				case "bank/rejected":
					return bocage.Explanation{}, bocage.Faults{{Field: end.field, Message: "workload bank/rejected takes no effect: secret"}}
				}
			}
			e := told
			if q.Port == 1 {
				e.Missing = "add to Application shop/web: consumes: [{service: bank/secret-app}]"
			}
			if q.Port == 2 {
				e.Destination, e.Missing = bocage.Peer{}, "declare Application shop/web: spec.consumes[1], or an Application that consumes it, or withdraw Guardrail pci never[0]"
			}
			return e, nil
		}
	})
	ask := func(who *client.Client, from, to string, port uint16) (string, bocage.Explanation, error) {
		t.Helper()
		e, err := who.Explain(t.Context(), bocage.ExplainQuery{From: from, To: to, Port: port, Protocol: bocage.ProtocolTCP})
		text, failed := json.Marshal(e)
		if failed != nil {
			t.Fatal(failed)
		}
		return string(text), e, err
	}
	admin, owner := b.as(t, RoleViewer), b.as(t, RoleOwner, "shop")
	if text, _, err := ask(admin, "shop/web", "bank/vault", 443); err != nil || strings.Count(text, "secret") != 15 {
		t.Errorf("whoever reads everything: %d secrets in %s %v", strings.Count(text, "secret"), text, err)
	}
	for port, missing := range []string{whatElse, whatElse, "declare Application shop/web: spec.consumes[1], or an Application that consumes it, or withdraw Guardrail pci never[0]"} {
		text, e, err := ask(owner, "shop/web", "bank/vault", uint16(port))
		if err != nil || strings.Contains(text, "secret") || e.Missing != missing {
			t.Errorf("an owner: %s %v", text, err)
		}
		if e.Source.Host != "h1" || e.Verdict != bocage.VerdictDrop || e.Decider != (bocage.Ref{Kind: "Quarantine", Name: hiddenName}) || len(e.Layers) != 5 ||
			len(e.Layers[0].By) != 2 || e.Layers[0].By[1].Source != "shop.yaml:1" || e.Layers[0].Result != "no contract allows it: default deny, unless something below does" ||
			e.Layers[1].By[0].Name != "pci" || e.Layers[1].Result != "no objection" || len(e.Layers[2].By) != 1 || e.Layers[3].Result != "refused: quarantine" {
			t.Errorf("an owner learns too little of their own flow: %s", text)
		}
	}
	for _, test := range []struct {
		who      *client.Client
		from, to string
		want     string
		code     int
	}{
		{admin, "shop/web", "bank/rejected", "takes no effect", 400},
		{admin, "shop/web", "bank/none", "neither an address", 400},
		{owner, "shop/none", "bank/vault", "neither an address", 400},
		{owner, "shop/web", "bank/none", "there is no workload bank/none of which a flow can be explained", 404},
		{owner, "shop/web", "bank/rejected", "there is no workload bank/rejected of which a flow can be explained", 404},
	} {
		_, _, err := ask(test.who, test.from, test.to, 443)
		var e *client.Error
		if !errors.As(err, &e) || e.Code != test.code || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s to %s: %v", test.from, test.to, err)
		}
	}
}
