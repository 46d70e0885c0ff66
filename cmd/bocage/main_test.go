package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
)

// invoke runs one command line in a place where no controller is.
func invoke(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &env{in: strings.NewReader(stdin), out: &out, err: &errs}
	code = run(t.Context(), e, append([]string{"--run-dir", t.TempDir()}, args...))
	return out.String(), errs.String(), code
}

// TestExitCodes holds what scripts rely on, with what people are told.
func TestExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s}\nspec: {mod: enforce}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pods, closed := filepath.Join(t.TempDir(), "pods.yaml"), filepath.Join(t.TempDir(), "closed.yaml")
	if err := os.WriteFile(pods, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nstatus: {podIP: 10.0.0.1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(closed, []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: {podSelector: {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		out  string
		err  string
	}{
		{[]string{"version"}, exitOK, version, ""},
		{[]string{"graph"}, exitOK, "Ruleset", ""},
		{[]string{"completion", "bash"}, exitOK, "bash completion", ""},
		{[]string{"nonsense"}, exitUsage, "", "unknown command"},
		{[]string{"--version"}, exitOK, version, ""},
		{[]string{"help", "nonsense"}, exitUsage, "", `unknown command "nonsense"`},
		{[]string{"help", "policy", "history"}, exitOK, "List the generations", ""},
		{[]string{"completion", "nonsense"}, exitUsage, "", `unknown command "nonsense" for "bocage completion"`},
		{[]string{"polcy"}, exitUsage, "", "did you mean policy?"},
		{[]string{"policy", "histroy"}, exitUsage, "", "did you mean history?"},
		{[]string{"quarantine", "nonsense"}, exitUsage, "", "which has add, "},
		{[]string{"user", "nonsense"}, exitUsage, "", "which has certificate, sessions, token"},
		{[]string{"off", "x"}, exitUsage, "", `"bocage off" takes no argument, and "x" was given`},
		{[]string{"watch", "hosts", "x"}, exitUsage, "", "write `bocage watch KIND`: 2 arguments were given"},
		{[]string{"demo", "--name", "a b"}, exitUsage, "", `--name "a b" cannot begin namespaces' names`},
		{[]string{"lab", "down", "--name", "../a"}, exitUsage, "", "--name"},
		{[]string{"lab", "down", "--name", "bctnone"}, exitOK, "there is no lab bctnone", ""},
		{[]string{"observe", "--from", "nobody"}, exitUsage, "", "bocage get workloads"},
		{[]string{"observe", "--to", "10.0.0.1"}, exitFailed, "", "bocage up"},
		{[]string{"hunt", " "}, exitUsage, "", "the question is empty"},
		{[]string{"policy", "suggest", "--since", "-1h"}, exitUsage, "", "--since cannot be negative"},
		{[]string{"--server", "controller", "whoami"}, exitUsage, "", "https://127.0.0.1:8443"},
		{[]string{"simulate", "-f", pods, "--probes", t.TempDir()}, exitFailed, "", "is a folder: name a file with probes"},
		{[]string{"simulate", "-f", pods, "--probes", "/does/not/exist"}, exitFailed, "", "read the probes"},
		{[]string{"get"}, exitUsage, "", "name a kind: applications, guardrails"},
		{[]string{"get", "apps"}, exitUsage, "", `there is no kind "apps": did you mean applications?`},
		{[]string{"apply", "bad.yaml"}, exitUsage, "", "bocage apply -f bad.yaml"},
		{[]string{"user", "token", "bob", "--for", "0s"}, exitUsage, "", "--for 0s is out of range: from 1s to 720h"},
		{[]string{"user", "certificate", "bob", "--for", "999h"}, exitUsage, "", "--for 999h0m0s is out of range: from 1s to 168h"},
		{[]string{"policy", "accept-risk", "h1", "--for", "-5m"}, exitUsage, "", "--for -5m0s is out of range"},
		{[]string{"audit", "-o", "yaml"}, exitUsage, "", `-o "yaml" is not one of table, wide, json, jsonl`},
		{[]string{"doctor", "-o", "name"}, exitUsage, "", `-o "name" is not one of`},
		{[]string{"get", "foo"}, exitUsage, "", `there is no kind "foo"; there are: applications, `},
		{[]string{"get", "apps", "-o", "xml"}, exitUsage, "", `-o "xml" is not one of table`},
		{[]string{"get", "application", "api"}, exitUsage, "", "needs its namespace"},
		{[]string{"get", "application", "api", "-A"}, exitUsage, "", "-A shows the applications of all namespaces"},
		{[]string{"apply"}, exitUsage, "", "name the files with -f"},
		{[]string{"observe", "--verdict", "maybe"}, exitUsage, "", "is not one of"},
		{[]string{"explain", "a/b", "c/d"}, exitUsage, "", "needs a destination port"},
		{[]string{"explain", "a/b", "c/d", "99999"}, exitUsage, "", "is not a number from 0 to 65535"},
		{[]string{"explain", "a/b", "c/d", "80", "--protocol", "xyz"}, exitUsage, "", "neither TCP"},
		{[]string{"--bogus"}, exitUsage, "", "unknown flag"},
		{[]string{"apply", "-f", bad}, exitFailed, "", bad + ":4: spec.mod: is unknown: did you mean mode?"},
		{[]string{"apply", "-f", "/does/not/exist"}, exitFailed, "", "/does/not/exist"},
		{[]string{"get", "hosts"}, exitFailed, "", "bocage up"},
		{[]string{"--server", "https://127.0.0.1:1", "get", "hosts"}, exitUsage, "", "--server needs --ca"},
		{[]string{"quarantine", "add", "Not A Name"}, exitUsage, "", "is not namespace/name of a workload"},
		{[]string{"approve", "decoy", "x"}, exitUsage, "", "guardrails, exceptions, scopes"},
		{[]string{"doctor", "--fail-at", "never"}, exitUsage, "", "is not needed, degraded or advice"},
		{[]string{"doctor", "kernel.nonsense"}, exitUsage, "", "there is no check"},
		{[]string{"trace", "a/b", "c/d"}, exitUsage, "", "trace needs FROM, TO and PROTOCOL[/PORT]"},
		{[]string{"trace", "a/b", "c/d", "tcp"}, exitUsage, "", "TCP needs a destination port: tcp/80"},
		{[]string{"trace", "a/b", "c/d", "udp/53", "--flags", "syn"}, exitUsage, "", "belong to TCP"},
		{[]string{"trace", "a/b", "c/d", "tcp/80", "--payload", "xyz"}, exitUsage, "", "neither hexadecimal nor @FILE"},
		{[]string{"trace", "a/b", "c/d", "icmp", "--icmp", "x/1"}, exitUsage, "", "--icmp"},
		{[]string{"trace", "a/b", "c/d", "tcp/80"}, exitFailed, "", "ask the agent"},
		{[]string{"prepare", "--user", "no-such-user"}, exitFailed, "", "systemd-sysusers makes it"},
		{[]string{"approve", "guardrail"}, exitUsage, "", "write `bocage approve KIND NAME`: 1 argument was given"},
		{[]string{"audit", "verify", "--dir", t.TempDir()}, exitFailed, "", "holds no audit trail"},
		{[]string{"audit", "verify", "--dir", brokenTrail(t)}, exitFailed, "", "the audit trail is broken: entry 2"},
		{[]string{"login", "--admin-token", "/does/not/exist"}, exitFailed, "", "read the one-time token"},
		{[]string{"decoy", "add", "x", "--port", "0"}, exitFailed, "", "needs a port"},
		{[]string{"explain"}, exitUsage, "", "needs FROM and TO, or --event"},
		{[]string{"explain", "--event", "a/b"}, exitUsage, "", "leave out a/b"},
		{[]string{"explain", "--event"}, exitUsage, "", "holds no flow record"},
		{[]string{"explain", "a/b", "c/d", "80", "--generation", "old"}, exitUsage, "", `"old" is not a generation such as g41`},
		{[]string{"explain", "a/b", "c/d", "80", "--at", "noon"}, exitUsage, "", `--at "noon" is not a time`},
		{[]string{"policy", "rollback", "g0"}, exitUsage, "", `"g0" is not a generation`},
		{[]string{"policy", "rollback", "g1", "g2"}, exitUsage, "", "write `bocage policy rollback [gN]`: 2 arguments were given"},
		{[]string{"policy", "confirm"}, exitFailed, "", "bocage up"},
		{[]string{"policy", "history"}, exitFailed, "", "bocage up"},
		{[]string{"policy", "blast"}, exitUsage, "", "0 arguments were given"},
		{[]string{"policy", "blast", "a/b", "--hops", "-1"}, exitUsage, "", "0 is to the end"},
		{[]string{"policy", "matrix"}, exitFailed, "", "bocage up"},
		{[]string{"policy", "test"}, exitFailed, "", "bocage up"},
		{[]string{"policy", "test", "-f", bad}, exitFailed, "", "nothing was decided"},
		{[]string{"policy", "plan"}, exitUsage, "", "name the files with -f"},
		{[]string{"plan", "-f", closed}, exitFailed, "", "bocage up"},
		{[]string{"plan", "-f", closed, "--default", "deny"}, exitUsage, "", "--default is about what --base declares"},
		{[]string{"plan", "--base", "-", "-f", "-"}, exitUsage, "", "cannot hold both"},
		{[]string{"plan", "--base", pods, "-f", closed}, exitDifference, "allow → drop", ""},
		{[]string{"plan", "--base", pods, "--base", closed, "-f", closed}, exitOK, "no reach changes", ""},
		{[]string{"simulate", "-f", bad, "--probes", bad}, exitFailed, "", bad + ":4: spec.mod: is unknown: did you mean mode?"},
		{[]string{"controller", "--host", "Not A Name"}, exitFailed, "", "is not a lower-case DNS label"},
	} {
		out, errs, code := invoke(t, "", c.args...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.err) {
			t.Errorf("bocage %s: exit code %d, want %d\nstdout: %.200s\nstderr: %.400s\nwant %q and %q", strings.Join(c.args, " "), code, c.code, out, errs, c.out, c.err)
		}
	}
}

// TestRecordsBecomeQuestions: a flow record is asked about as it was decided.
func TestRecordsBecomeQuestions(t *testing.T) {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	record := bocage.FlowRecord{FlowEvent: bocage.FlowEvent{Time: at, Protocol: bocage.ProtocolICMP, DestinationPort: 8 * 256, Generation: 41},
		SourceAddress: "10.0.0.1", DestinationAddress: "10.0.0.2", SourceWorkload: "shop/web"}
	q, err := recordQuery(record, bocage.ExplainQuery{})
	if want := (bocage.ExplainQuery{From: "10.0.0.1", To: "10.0.0.2", Protocol: bocage.ProtocolICMP, At: at, Generation: 41}); err != nil || q != want {
		t.Errorf("asked %+v, %v", q, err)
	}
	q, err = recordQuery(record, bocage.ExplainQuery{At: at.Add(time.Hour), Generation: 7})
	if err != nil || q.Generation != 7 || !q.At.Equal(at.Add(time.Hour)) {
		t.Errorf("asked %+v, %v", q, err)
	}
	if _, err := recordQuery(bocage.FlowRecord{}, bocage.ExplainQuery{}); err == nil {
		t.Error("a record of nothing was asked about")
	}
}

// TestPlansThatDiffer holds when plan says that something would change.
func TestPlansThatDiffer(t *testing.T) {
	edge := []bocage.PlannedEdge{{}}
	for _, test := range []struct {
		plan bocage.PlanResult
		code int
	}{
		{bocage.PlanResult{}, exitOK},
		{bocage.PlanResult{Findings: bocage.Faults{{Field: "Application a/b", Message: "is half of a contract"}}, Unused: []bocage.Ref{{}}}, exitOK},
		{bocage.PlanResult{Findings: bocage.Faults{{Field: "Scope a/b", Message: "picks nobody"}}}, exitOK},
		{bocage.PlanResult{Cut: []bocage.CutSession{{}}}, exitRisky},
		{bocage.PlanResult{Enforced: []string{"a/b"}}, exitDifference},
		{bocage.PlanResult{Observed: []string{"a/b"}}, exitDifference},
		{bocage.PlanResult{Reach: []bocage.ReachChange{{}}}, exitDifference},
		{bocage.PlanResult{Quarantined: []string{"a/b"}}, exitDifference},
		{bocage.PlanResult{Released: []string{"a/b"}}, exitDifference},
		{bocage.PlanResult{Times: []bocage.PlannedTime{{}}}, exitDifference},
		{bocage.PlanResult{Uncompared: 1}, exitDifference},
		{bocage.PlanResult{NewlyRefused: edge}, exitDifference},
		{bocage.PlanResult{NewlyAllowed: edge}, exitDifference},
		{bocage.PlanResult{DutyChanged: edge}, exitDifference},
		{bocage.PlanResult{DutyChanged: edge, Proofs: []bocage.Proof{{}}}, exitFailed},
		{bocage.PlanResult{Tests: []bocage.TestResult{{}}}, exitFailed},
		{bocage.PlanResult{Tests: []bocage.TestResult{{Passed: true}}}, exitOK},
	} {
		code := exitOK
		var exit *exitError
		if err := planOutcome(test.plan); errors.As(err, &exit) {
			code = exit.code
		}
		if code == exitRisky && !strings.Contains(exit.Error(), "apply it with --accept-risk") {
			t.Errorf("advises what plan cannot do: %v", exit)
		}
		if code != test.code {
			t.Errorf("%+v: exit code %d, want %d", test.plan, code, test.code)
		}
	}
}

func TestCompareNames(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"g2", "g10", -1}, {"g10", "g2", 1}, {"a", "b", -1}, {"g2", "g2", 0}, {"h10", "i2", -1}} {
		if got := compareNames(&bocage.ObjectMeta{Name: c.a}, &bocage.ObjectMeta{Name: c.b}); got != c.want {
			t.Errorf("%s and %s: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// brokenTrail writes an audit trail and then something else into it.
func brokenTrail(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	trail, err := audit.Open(audit.Config{Dir: dir, Node: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = trail.Run(ctx)
	}()
	for range 3 {
		if err := trail.Append(t.Context(), audit.Entry{Who: "alice", Verb: "create", Code: 201}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	lines[1] = strings.Replace(lines[1], "alice", "malice", 1)
	if err := os.WriteFile(files[0], []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
