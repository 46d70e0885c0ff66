package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// answers are functions that say what they were asked.
func answers() Functions {
	return Functions{
		Explain: func(_ context.Context, q bocage.ExplainQuery) (bocage.Explanation, error) {
			if q.From == "nobody/x" {
				return bocage.Explanation{}, bocage.Faults{{Field: "from", Message: "there is no workload nobody/x"}}
			}
			return bocage.Explanation{Generation: 7, Name: bocage.DomainName(q.Name), Missing: fmt.Sprintf("%s>%s:%d/%s", q.From, q.To, q.Port, q.Protocol)}, nil
		},
		Flows: func(ctx context.Context, q bocage.FlowsQuery, each func(bocage.FlowRecord) error) error {
			for _, ends := range [][2]string{{"shop/web", "bank/api"}, {"bank/a", "bank/b"}, {"bank/x", "shop/api"}} {
				record := bocage.FlowRecord{Host: "h1", SourceWorkload: ends[0], DestinationWorkload: ends[1]}
				record.Kind, record.Verdict, record.Would, record.DestinationPort = bocage.EventStart, bocage.VerdictAllow, bocage.VerdictDrop, q.Port
				if err := each(record); err != nil {
					return err
				}
			}
			if q.From == "broken" {
				return errors.New("the log is gone")
			}
			if q.Follow {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		},
		Hunt: func(_ context.Context, sql string, limit int) (bocage.HuntResult, error) {
			return bocage.HuntResult{Columns: []string{"sql", "limit"}, Rows: [][]any{{sql, limit}}}, nil
		},
		Suggest: func(_ context.Context, since time.Duration, namespaces []string) (bocage.SuggestResult, error) {
			app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Name: "web", Namespace: strings.Join(namespaces, "+")}}
			return bocage.SuggestResult{Applications: []*bocage.Application{app}, Review: []bocage.Edge{{Source: since.String()}}}, nil
		},
		Plan: func(_ context.Context, objects []bocage.Resource) (bocage.PlanResult, error) {
			var result bocage.PlanResult
			for _, object := range objects {
				if object.Meta().DeletionTimestamp != nil {
					result.Findings.Add("", "without %s", object.Meta().Name)
				}
				if object.Meta().Name == "bad" {
					result.Faults.Add("spec.mode", "is bad")
				}
				result.Proofs = append(result.Proofs, bocage.Proof{Statement: object.Meta().Annotations[bocage.SourceAnnotation], Holds: true})
			}
			return result, nil
		},
		Test: func(_ context.Context, objects []bocage.Resource) ([]bocage.TestResult, error) {
			results := []bocage.TestResult{{Test: "bank/declared", Passed: true}}
			for _, object := range objects {
				results = append(results, bocage.TestResult{Test: object.Meta().NamespacedName(), Case: object.Type().Kind, Want: "allow", Got: "refuse"})
			}
			return results, nil
		},
		Blast: func(_ context.Context, q bocage.BlastQuery) (bocage.BlastResult, error) {
			if q.From == "nobody/" {
				return bocage.BlastResult{}, bocage.Faults{{Field: "from", Message: "there is no namespace nobody"}}
			}
			return bocage.BlastResult{From: []string{q.From, fmt.Sprint(q.Uninspected)}, Total: q.Hops}, nil
		},
		Matrix: func(_ context.Context, namespaces []string) (bocage.ReachMatrix, error) {
			return bocage.ReachMatrix{Workloads: namespaces}, nil
		},
		Rollout: func(_ context.Context, who string, r bocage.RolloutRequest) (bocage.RolloutStatus, error) {
			if r.Generation == 3 {
				return bocage.RolloutStatus{}, bocage.Faults{{Field: "generation", Message: "3 is not kept any more"}}
			}
			return bocage.RolloutStatus{Stage: who + " " + r.Action, Generation: r.Generation}, nil
		},
		JoinToken: func(_ context.Context, path string, ttl time.Duration) (string, error) {
			return path + " " + ttl.String(), nil
		},
	}
}

func TestFunctions(t *testing.T) {
	b := start(t, func(c *Config) { c.Functions = answers() })
	ctx := t.Context()
	admin := b.as(t, RoleAdmin)

	explanation, err := admin.Explain(ctx, bocage.ExplainQuery{From: "shop/web", To: "10.0.0.1", Name: "api.example.com", Port: 80, Protocol: bocage.ProtocolUDP})
	if err != nil || explanation.Missing != "shop/web>10.0.0.1:80/UDP" || explanation.Name != "api.example.com" {
		t.Error(explanation.Missing, err)
	}
	_, err = admin.Explain(ctx, bocage.ExplainQuery{From: "nobody/x", To: "a/b"})
	var e *client.Error
	if !errors.As(err, &e) || len(e.Faults) != 1 || e.Faults[0].Field != "from" {
		t.Errorf("the room's faults: %v", err)
	}
	if _, err = admin.Explain(ctx, bocage.ExplainQuery{}); !errors.As(err, &e) || len(e.Faults) != 2 {
		t.Errorf("an empty question: %v", err)
	}

	result, err := admin.Hunt(ctx, "select 1", 7)
	if err != nil || fmt.Sprint(result.Rows) != "[[select 1 7]]" {
		t.Error(result, err)
	}
	if _, err := admin.Hunt(ctx, " ", 0); err == nil {
		t.Error("an empty question was put")
	}
	suggested, err := admin.Suggest(ctx, 5*time.Minute, []string{"a", "b"})
	if err != nil || suggested.Applications[0].Namespace != "a+b" || suggested.Review[0].Source != "5m0s" {
		t.Error(suggested, err)
	}
	token, expires, err := admin.JoinToken(ctx, "h1", time.Minute)
	if err != nil || token != "/agent/h1 1m0s" || time.Until(expires) > time.Minute {
		t.Error(token, expires, err)
	}
	if _, _, err := admin.JoinToken(ctx, "../admin/x", 0); err == nil {
		t.Error("a token for a path of fancy")
	}
	if !strings.Contains(b.log.String(), `"verb":"joinTokens"`) || strings.Contains(b.log.String(), token) {
		t.Error("the join token is not in the audit log, or is there itself")
	}
}

// TestQuestionsToPolicy: what is asked arrives, what is answered comes back, and
// people see what they may.
func TestQuestionsToPolicy(t *testing.T) {
	b := start(t, func(c *Config) { c.Functions = answers() })
	ctx := t.Context()
	admin, owner := b.as(t, RoleAdmin), b.as(t, RoleOwner, "shop")
	var e *client.Error

	test := documents(t, "apiVersion: bocage.dev/v1\nkind: PolicyTest\nmetadata: {name: a, namespace: shop}\nspec: {cases: [{name: PolicyTest, from: shop/b, to: c/d, port: 1, expect: {reach: allow}}]}\n")
	results, err := admin.Test(ctx, test)
	if err != nil || len(results) != 2 || results[1].Test != "shop/a" || results[1].Case != "PolicyTest" {
		t.Error(results, err)
	}
	if results, err = admin.Test(ctx, nil); err != nil || len(results) != 1 {
		t.Error("the declared tests:", results, err)
	}
	if results, err = owner.Test(ctx, test); err != nil || len(results) != 1 || results[0].Test != "shop/a" {
		t.Error("an owner sees", results, err)
	}

	blast, err := admin.Blast(ctx, bocage.BlastQuery{From: "shop/", Hops: 3, Uninspected: true})
	if err != nil || blast.Total != 3 || fmt.Sprint(blast.From) != "[shop/ true]" {
		t.Error(blast, err)
	}
	if _, err = admin.Blast(ctx, bocage.BlastQuery{}); !errors.As(err, &e) || len(e.Faults) != 1 {
		t.Error("an empty question:", err)
	}
	if _, err = admin.Blast(ctx, bocage.BlastQuery{From: "nobody/"}); !errors.As(err, &e) || e.Faults[0].Field != "from" {
		t.Error("the room's faults:", err)
	}
	if _, err = owner.Blast(ctx, bocage.BlastQuery{From: "bank/x"}); !client.HasReason(err, client.ReasonForbidden) {
		t.Error("an owner asks about others:", err)
	}

	matrix, err := admin.Matrix(ctx, []string{"a", "b"})
	if err != nil || fmt.Sprint(matrix.Workloads) != "[a b]" {
		t.Error(matrix, err)
	}
	if matrix, err = owner.Matrix(ctx, nil); err != nil || fmt.Sprint(matrix.Workloads) != "[shop]" {
		t.Error("an owner's own:", matrix, err)
	}
	if _, err = owner.Matrix(ctx, []string{"bank"}); !client.HasReason(err, client.ReasonForbidden) {
		t.Error("an owner asks about others:", err)
	}

	status, err := admin.Rollout(ctx, bocage.RolloutRequest{Action: "rollback", Generation: 6})
	if err != nil || status.Stage != "token:tester rollback" || status.Generation != 6 {
		t.Error(status, err)
	}
	for _, r := range []bocage.RolloutRequest{{}, {Action: "undo"}, {Action: "promote", Generation: 2}, {Action: "rollback", Generation: 3},
		{Action: "accept-risk", Seconds: 60}, {Action: "accept-risk", Hosts: []string{"h1"}}, {Action: "accept-risk", Hosts: []string{"h1"}, Seconds: 1e6}} {
		if _, err = admin.Rollout(ctx, r); !errors.As(err, &e) || len(e.Faults) != 1 {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err = owner.Rollout(ctx, bocage.RolloutRequest{Action: "confirm"}); !client.HasReason(err, client.ReasonForbidden) {
		t.Error("an owner confirms:", err)
	}
	if !strings.Contains(b.log.String(), `"verb":"rollout"`) {
		t.Error("the rollback is not in the audit log")
	}
}

func TestPlan(t *testing.T) {
	b := start(t, func(c *Config) { c.Functions = answers() })
	ctx := t.Context()
	text := "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: a}\nspec: {mode: observe}\n"
	result, err := b.client.Plan(ctx, documents(t, text))
	if err != nil || len(result.Proofs) != 1 || result.Proofs[0].Statement != "test.yaml:1" {
		t.Errorf("%+v %v", result, err)
	}
	result, err = b.client.PlanChanges(ctx, documents(t, text), documents(t, strings.Replace(text, "name: a", "name: old", 1)))
	if err != nil || len(result.Proofs) != 2 || len(result.Findings) != 1 || result.Findings[0].Message != "without old" {
		t.Errorf("%+v %v", result, err)
	}
	code, answer, _ := b.raw(t, "POST", functionsPath+"/plan?name=x.yaml", "application/yaml", strings.Replace(text, "observe", "watch", 1))
	if code != 200 || !strings.Contains(answer, `"source":"x.yaml:4"`) {
		t.Error(code, answer)
	}
	// It stores nothing.
	if list, _, err := b.client.List(ctx, kind("Scope"), client.ListOptions{}); err != nil || len(list) != 0 {
		t.Error(len(list), err)
	}
}

func TestFlows(t *testing.T) {
	b := start(t, func(c *Config) { c.Functions = answers() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	read := func(q bocage.FlowsQuery) (got []string, err error) {
		err = b.as(t, RoleViewer).Flows(ctx, q, func(r bocage.FlowRecord) error {
			if r.DestinationPort != q.Port || r.Would != bocage.VerdictDrop || r.Host != "h1" {
				t.Errorf("%+v", r)
			}
			got = append(got, r.SourceWorkload)
			return nil
		})
		return got, err
	}
	if got, err := read(bocage.FlowsQuery{Port: 80}); err != nil || len(got) != 3 {
		t.Error(got, err)
	}
	if got, err := read(bocage.FlowsQuery{Limit: 2, Verdict: bocage.VerdictAllow, Since: time.Unix(5, 0)}); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
	if got, err := read(bocage.FlowsQuery{From: "broken"}); len(got) != 3 || err == nil || err.Error() != "the log is gone" {
		t.Error(got, err)
	}
	seen := 0
	enough := errors.New("enough")
	err := b.client.Flows(ctx, bocage.FlowsQuery{Follow: true}, func(bocage.FlowRecord) error {
		if seen++; seen == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	for query, want := range map[string]string{
		"port=x": "is not a port", "verdict=maybe": "verdict", "since=yesterday": "is not a time", "limit=-1": "is not a number", "protocol=x": "protocol",
	} {
		if code, text, _ := b.raw(t, "GET", functionsPath+"/flows?"+query, "", ""); code != 400 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
}

func TestFunctionsThatAreNotThere(t *testing.T) {
	b := start(t, nil)
	for _, test := range [][3]string{
		{"GET", "explain?from=a/b&to=c/d", ""}, {"GET", "flows", ""}, {"POST", "hunt", "select 1"}, {"GET", "suggest", ""},
		{"POST", "plan", scopeJSON("a", "observe", "")}, {"POST", "joinTokens", `{"path":"/agent/h1"}`},
	} {
		code, text, _ := b.raw(t, test[0], functionsPath+"/"+test[1], "", test[2])
		if code != http.StatusNotImplemented || !strings.Contains(text, "this controller does not") {
			t.Errorf("%s: %d %s", test[1], code, text)
		}
	}
	if code, _, _ := b.raw(t, "GET", functionsPath+"/fortune", "", ""); code != 404 {
		t.Error(code)
	}
	if code, _, _ := b.raw(t, "GET", functionsPath+"/hunt", "", ""); code != 405 {
		t.Error(code)
	}
}

// TestReady: what does not work is named.
func TestReady(t *testing.T) {
	broken := errors.New("is not there")
	b := start(t, func(c *Config) {
		c.Ready = map[string]func(context.Context) error{
			"engine": func(context.Context) error { return broken }, "other": func(context.Context) error { return nil },
		}
	})
	code, text, _ := b.raw(t, "GET", "/readyz", "", "")
	if diff := cmp.Diff("[-]engine failed: is not there\n[+]other ok\n[+]running ok\n[+]store ok\n[+]view ok\nreadyz check failed\n", text); diff != "" || code != 503 {
		t.Errorf("%d %s", code, diff)
	}
	if err := b.client.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "engine failed") {
		t.Error(err)
	}
	if code, _, _ := b.raw(t, "GET", "/livez", "", ""); code != 200 {
		t.Error(code)
	}
}
