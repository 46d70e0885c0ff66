package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/store/mem"
)

func withTrail(t *testing.T) (*bench, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	return start(t, func(c *Config) {
		c.AuditDir, c.Node, c.Functions, c.AdminToken = dir, "c1", answers(), "correct-horse-battery"
	}), dir
}

func entriesOf(t *testing.T, dir string) []audit.Entry {
	t.Helper()
	var found []audit.Entry
	if err := audit.ReadDir(dir, 0, func(e audit.Entry) error { found = append(found, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return found
}

// TestTrail does what people do and looks for it in the trail.
func TestTrail(t *testing.T) {
	b, dir := withTrail(t)
	ctx := t.Context()
	viewer := b.as(t, RoleViewer)
	scopes := kind("Scope")
	if _, err := b.client.ApplyObject(ctx, scopes, scope("s1", "observe"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Get(ctx, scopes, "", "s1"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.ApplyObject(ctx, scopes, scope("s2", "observe"), client.WriteOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := viewer.ApplyObject(ctx, scopes, scope("s3", "observe"), client.WriteOptions{}); !client.HasReason(err, client.ReasonForbidden) {
		t.Fatal(err)
	}
	if _, err := b.client.ApplyObject(ctx, scopes, scope("s4", "maybe"), client.WriteOptions{}); !client.HasReason(err, client.ReasonInvalid) {
		t.Fatal(err)
	}
	if _, err := b.client.Apply(ctx, documents(t, "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s5}\nspec: {mode: observe}\n---\napiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s6}\nspec: {mode: observe}\n"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := viewer.Hunt(ctx, "select secrets", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Delete(ctx, scopes, "", "s1", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.withToken(t, "wrong-token").Login(ctx); err == nil {
		t.Fatal("a wrong token")
	}
	if _, err := b.withToken(t, "correct-horse-battery").Login(ctx); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := b.raw(t, "DELETE", "/apis/bocage.dev/v1/scopes", "", ""); code != 200 {
		t.Fatal(code)
	}
	var got []string
	for _, e := range entriesOf(t, dir) {
		if e.Node != "c1" || e.From == "" {
			t.Errorf("%+v", e)
		}
		got = append(got, fmt.Sprintf("%s %s %s %s %d %v %v", strings.SplitN(e.Who, ":", 2)[0], e.Verb, e.Resource, e.Name, e.Code, e.DryRun, e.Object != ""))
	}
	want := strings.TrimSpace(`
local sessions sessions token:tester 201 false false
local patch scopes s1 201 false true
local patch scopes s2 201 true true
token patch scopes s3 403 false false
local patch scopes s4 422 false false
local patch scopes s5 200 false true
local patch scopes s6 200 false true
local apply apply  200 false false
token hunt hunt  200 false false
local delete scopes s1 200 false false
stranger login login  401 false false
bootstrap login login  201 false false
local deletecollection scopes s5 200 false false
local deletecollection scopes s6 200 false false`)
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("the trail says\n%s\nwant\n%s", text, want)
	}
	data, err := os.ReadFile(filepath.Join(dir, "audit-00000000000000000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("horse")) {
		t.Error("the trail holds a token")
	}
	if !bytes.Contains(data, []byte("select secrets")) {
		t.Error("the trail does not hold the question")
	}

	// Who may read it does so from where they want.
	auditor := b.as(t, RoleAuditor)
	var seen []uint64
	var v audit.Verifier
	if err := auditor.Audit(ctx, 0, func(e audit.Entry) error { return v.Next(e) }); err != nil {
		t.Fatal(err)
	}
	if err := auditor.Audit(ctx, 12, func(e audit.Entry) error { seen = append(seen, e.Sequence); return nil }); err != nil || fmt.Sprint(seen) != "[12 13 14 15]" {
		t.Error(seen, err)
	}
	if err := viewer.Audit(ctx, 0, func(audit.Entry) error { return nil }); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("a viewer: %v", err)
	}
	if node, anchors, err := auditor.AuditAnchors(ctx); err != nil || node != "c1" || len(anchors) > 1 {
		t.Error(node, anchors, err)
	}
}

// TestTrailManyAtOnce: every change that was acknowledged stands in the trail.
func TestTrailManyAtOnce(t *testing.T) {
	b, dir := withTrail(t)
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			if _, err := b.client.ApplyObject(t.Context(), kind("Scope"), scope(fmt.Sprint("s", i), "observe"), client.WriteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if found := entriesOf(t, dir); len(found) != 40 {
		t.Errorf("%d entries", len(found))
	}
	if _, err := audit.Verify(dir, 0, &audit.Verifier{}); err != nil {
		t.Error(err)
	}
}

// TestRootTrailFull fills the disk below the trail: nothing is changed, reads go
// on, and changes do once there is room.
func TestRootTrailFull(t *testing.T) {
	hosttest.Root(t)
	mount := t.TempDir()
	if err := unix.Mount("bocage-test", mount, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	b := start(t, func(c *Config) { c.AuditDir, c.Node = filepath.Join(mount, "audit"), "c1" })
	write := func(name string) error {
		_, err := b.client.ApplyObject(t.Context(), kind("Scope"), scope(name, "observe"), client.WriteOptions{})
		return err
	}
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = write(fmt.Sprint("s", n))
	}
	if err == nil || !strings.Contains(err.Error(), "make room") {
		t.Fatalf("after %d: %v", n, err)
	}
	if err := write("refused"); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("a change without a trail: %v", err)
	}
	if _, err := b.client.Get(t.Context(), kind("Scope"), "", "refused"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("what cannot be recorded was done, or nothing can be read: %v", err)
	}
	if err := unix.Mount("bocage-test", mount, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := write("after"); err != nil {
		t.Error(err)
	}
	if _, err := audit.Verify(filepath.Join(mount, "audit"), 0, &audit.Verifier{}); err != nil {
		t.Error(err)
	}
}

// TestTrailAfterKill kills a controller in the midst of changes: whatever it
// acknowledged stands in the trail, and the trail is whole.
func TestTrailAfterKill(t *testing.T) {
	if dir := os.Getenv("BOCAGE_TEST_TRAIL"); dir != "" {
		killedServer(t, dir)
		return
	}
	for round := range 3 {
		dir := t.TempDir()
		child := exec.Command(os.Args[0], "-test.run=^TestTrailAfterKill$")
		child.Env = append(os.Environ(), "BOCAGE_TEST_TRAIL="+dir)
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := map[string]bool{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if name, ok := strings.CutPrefix(lines.Text(), "done "); ok {
				acknowledged[name] = true
			}
			if len(acknowledged) == 30+17*round {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait()
		if len(acknowledged) < 30 {
			t.Fatalf("%d changes only", len(acknowledged))
		}
		trail, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit"), Node: "c1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := trail.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Verify(filepath.Join(dir, "audit"), 0, &audit.Verifier{}); err != nil {
			t.Error(err)
		}
		for _, e := range entriesOf(t, filepath.Join(dir, "audit")) {
			delete(acknowledged, e.Name)
		}
		if len(acknowledged) > 0 {
			t.Errorf("%v were acknowledged, and are not in the trail", acknowledged)
		}
	}
}

// killedServer serves until it is killed, and tells what it acknowledged.
func killedServer(t *testing.T, dir string) {
	s, err := New(Config{Store: mem.New(), Socket: filepath.Join(dir, "s"), AuditDir: filepath.Join(dir, "audit"), Node: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { _ = s.Run(ctx) })
	if _, err := s.Addresses(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Socket: filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	for worker := range 4 {
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("s%d-%d", worker, i)
				if _, err := c.ApplyObject(ctx, kind("Scope"), scope(name, bocage.ModeObserve), client.WriteOptions{}); err == nil {
					fmt.Println("done " + name)
				}
			}
		})
	}
}

// TestTrailOfDryRuns: a dry run stands as one in the trail and in the log, wherever the
// client said that it is one.
func TestTrailOfDryRuns(t *testing.T) {
	b, dir := withTrail(t)
	const options = `{"apiVersion":"v1","kind":"DeleteOptions","dryRun":["All"]}`
	b.tell(t, []request{
		{"make", "POST", policiesPath, jsonType, policyBody, nil, 201, ""},
		{"as kubectl asks", "DELETE", policiesPath + "/web", jsonType, options, nil, 200, ""},
		{"all of them", "DELETE", policiesPath, jsonType, options, nil, 200, ""},
		{"in the query", "DELETE", policiesPath + "/web?dryRun=All", "", "", nil, 200, ""},
		{"misspelled", "DELETE", policiesPath + "/web", jsonType, `{"dryRun":["all"]}`, nil, 422, ""},
		{"still there", "GET", policiesPath + "/web", "", "", nil, 200, ""},
		{"in earnest", "DELETE", policiesPath + "/web", jsonType, `{"kind":"DeleteOptions","apiVersion":"v1"}`, nil, 200, ""},
	})
	var got []string
	for _, e := range entriesOf(t, dir) {
		got = append(got, fmt.Sprintf("%s %d %v", e.Verb, e.Code, e.DryRun))
	}
	want := "create 201 false, delete 200 true, deletecollection 200 true, delete 200 true, delete 422 true, delete 200 false"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("the trail says %s, want %s", text, want)
	}
}

// TestLogOfDryRuns: without a trail the log is all there is.
func TestLogOfDryRuns(t *testing.T) {
	b := start(t, nil)
	b.tell(t, []request{
		{"make", "POST", policiesPath, jsonType, policyBody, nil, 201, ""},
		{"one", "DELETE", policiesPath + "/web", jsonType, `{"dryRun":["All"]}`, nil, 200, ""},
		{"all of them", "DELETE", policiesPath, jsonType, `{"dryRun":["All"]}`, nil, 200, ""},
	})
	for line := range strings.Lines(b.log.String()) {
		if strings.Contains(line, `"verb":"delete`) && !strings.Contains(line, `"dryRun":true`) {
			t.Error(line)
		}
	}
	if n := strings.Count(b.log.String(), `"dryRun":true`); n != 2 {
		t.Errorf("%d dry runs in\n%s", n, b.log)
	}
}

// TestTrailOfImpersonation: who tries to change something as somebody else stands in the
// trail with whom they would have been.
func TestTrailOfImpersonation(t *testing.T) {
	b, dir := withTrail(t)
	long := strings.Repeat("n", 4000)
	b.tell(t, []request{
		{"write", "POST", policiesPath, jsonType, policyBody, []string{"Impersonate-User", "carol"}, 403, "cannot act as carol"},
		{"a long name", "DELETE", policiesPath + "/web", "", "", []string{"Impersonate-Group", long}, 403, ""},
		{"a long kind", "DELETE", policiesPath + "/web", "", "", []string{"Impersonate-Extra-" + long, "x"}, 403, ""},
		{"read", "GET", policiesPath, "", "", []string{"Impersonate-User", "carol"}, 403, ""},
	})
	entries := entriesOf(t, dir)
	if len(entries) != 3 {
		t.Fatalf("%+v", entries)
	}
	e := entries[0]
	if !strings.HasPrefix(e.Who, "local:") || e.Verb != "post" || e.Resource != policiesPath || e.Code != 403 || !strings.Contains(e.Message, "carol") {
		t.Errorf("%+v", e)
	}
	if n := strings.Count(b.log.String(), "refused to let somebody act as another"); n != 4 {
		t.Errorf("%d refusals in\n%s", n, b.log)
	}
}
