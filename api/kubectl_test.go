package api

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// TestKubectl tells the stories of testdata/kubectl with the real kubectl, which
// the tools module pins. Each story has a server of its own.
func TestKubectl(t *testing.T) {
	if testing.Short() {
		t.Skip("kubectl may have to be built, which takes minutes")
	}
	kubectl := os.Getenv("BOCAGE_KUBECTL")
	if kubectl == "" {
		kubectl = tool(t, "kubectl")
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/kubectl", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			b := start(t, nil)
			b.kubeconfig(t, filepath.Join(env.WorkDir, "kubeconfig"), RoleAdmin)
			b.kubeconfig(t, filepath.Join(env.WorkDir, "owner"), RoleOwner, "shop")
			env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, "kubeconfig"))
			env.Setenv("HOME", env.WorkDir)
			env.Values[benchKey{}] = b
			env.Setenv("PATH", filepath.Dir(kubectl)+string(os.PathListSeparator)+env.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"room": room},
	})
}

type benchKey struct{}

// room writes what people cannot: "room enforced NAMESPACE NAME" what policy says
// of an Application, "room incident NAME" what recognition opens, "room event
// KIND NAMESPACE NAME REASON MESSAGE" what policy tells of an object.
func room(ts *testscript.TestScript, _ bool, args []string) {
	b := ts.Value(benchKey{}).(*bench)
	ctx := context.Background()
	switch {
	case len(args) == 3 && args[0] == "enforced":
		ts.Check(store.UpdateObject(ctx, b.store, kind("Application"), args[1], args[2], func(a *bocage.Application) (bool, error) {
			a.Status.Conditions = bocage.SetCondition(a.Status.Conditions, bocage.Condition{
				Type: bocage.ConditionEnforced, Status: "True", Reason: "AllAgents", Message: "1/1", ObservedGeneration: a.Generation,
			})
			return true, nil
		}))
	case len(args) == 2 && args[0] == "incident":
		_, err := store.PutObject(ctx, b.store, kind("Incident"), &bocage.Incident{
			ObjectMeta: bocage.ObjectMeta{Name: args[1], UID: "1"}, Status: bocage.IncidentStatus{Phase: "open", Title: "scan"},
		}, store.Absent)
		ts.Check(err)
	case len(args) == 6 && args[0] == "event":
		about, _, err := store.Object(ctx, b.store, kind(args[1]), args[2], args[3])
		ts.Check(err)
		now := time.Now().UTC().Truncate(time.Second)
		meta := store.NewMeta(strings.ToLower(args[3]+"."+args[4]), now)
		meta.Namespace = args[2]
		_, err = store.PutObject(ctx, b.store, kind("Event"), &bocage.ObjectEvent{
			ObjectMeta: meta, Reason: args[4], Message: args[5], Weight: "Normal", Count: 1, FirstTimestamp: now, LastTimestamp: now,
			InvolvedObject:     bocage.ObjectReference{APIVersion: about.Type().APIVersion, Kind: args[1], Namespace: args[2], Name: args[3], UID: about.Meta().UID},
			ReportingComponent: "policy", Source: bocage.EventSource{Component: "policy"},
		}, store.Absent)
		ts.Check(err)
	default:
		ts.Fatalf("usage: room enforced NAMESPACE NAME | room incident NAME | room event KIND NAMESPACE NAME REASON MESSAGE")
	}
}

// tool returns the path of a program of the tools module, which make builds; who
// runs go test alone builds it once, however many do so at the same time.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../.bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	t.Logf("building %s, once", name)
	// The flags are those of the Makefile, so that the two share a cache.
	build := exec.Command("nice", "go", "build", "-trimpath", "-buildvcs=false", "-o", path, "./cmd/"+name)
	build.Dir = "../tools"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// kubeconfig writes a file with which kubectl reaches the server with a session
// of a role.
func (b *bench) kubeconfig(t *testing.T, path string, role Role, namespaces ...string) {
	t.Helper()
	session, err := b.server.createSession(t.Context(), Person{Name: "token:kubectl-" + string(role), Grants: []Grant{{Role: role, Namespaces: namespaces}}}, defaultSession)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: %s
    tls-server-name: localhost
    certificate-authority-data: %s
users:
- name: test
  user: {token: %s}
contexts:
- name: test
  context: {cluster: test, user: test, namespace: shop}
`, b.address, base64.StdEncoding.EncodeToString(b.authority.Bundle().MarshalPEM()), session.Token)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// informing is client-go's informer, run in a process of its own.
type informing struct {
	t     *testing.T
	lines *bufio.Scanner
	end   func() error
}

func (b *bench) inform(t *testing.T, role Role, resource string) *informing {
	t.Helper()
	if testing.Short() {
		t.Skip("the informer may have to be built, which takes minutes")
	}
	config := filepath.Join(t.TempDir(), "kubeconfig")
	b.kubeconfig(t, config, role)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	informer := exec.CommandContext(ctx, tool(t, "informer"), config, resource)
	stdin, err := informer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := informer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	informer.Stderr = os.Stderr
	if err := informer.Start(); err != nil {
		t.Fatal(err)
	}
	return &informing{t, bufio.NewScanner(stdout), func() error { return errors.Join(stdin.Close(), informer.Wait()) }}
}

// want reads as many lines as there are, in any order: what is there is told
// while the cache fills.
func (i *informing) want(all ...string) {
	i.t.Helper()
	left := slices.Clone(all)
	for range all {
		if !i.lines.Scan() {
			i.t.Fatalf("the informer ended: %v", i.lines.Err())
		}
		at := slices.Index(left, i.lines.Text())
		if at < 0 {
			i.t.Fatalf("the informer says %q, want one of %q", i.lines.Text(), left)
		}
		left = slices.Delete(left, at, at+1)
	}
}

// TestInformer lets client-go's informer, by which controllers live, follow a
// kind: it lists, watches with bookmarks, and resumes where it was.
func TestInformer(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	informer := b.inform(t, RoleViewer, "scopes")
	informer.want("added /a", "synced 1")
	b.mustScope(t, "POST", "b", "")
	informer.want("added /b")
	b.mustScope(t, "PATCH", "b", `{"spec":{"mode":"enforce"}}`)
	informer.want("updated /b")
	b.mustScope(t, "DELETE", "a", "")
	informer.want("deleted /a")
	if err := informer.end(); err != nil {
		t.Error(err)
	}
}

// TestTypedInformer lets client-go read and write NetworkPolicies with the types
// that it has compiled in, which it writes as protobuf.
func TestTypedInformer(t *testing.T) {
	b := start(t, nil)
	body := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":"http"},{"port":80}]}]}}`
	if code, text, _ := b.raw(t, "POST", policiesPath, jsonType, body); code != 201 {
		t.Fatal(code, text)
	}
	informer := b.inform(t, RoleAdmin, "networkpolicies")
	informer.want("added shop/web", "synced 1")
	// It writes down the types that were filled in: that changes nothing.
	informer.want("added typed/typed", "typed https Ingress web 1", "deleted typed/typed")
	if code, text, _ := b.raw(t, "PATCH", policiesPath+"/web", mergeType, `{"spec":{"policyTypes":["Egress"]}}`); code != 200 {
		t.Fatal(code, text)
	}
	informer.want("updated shop/web")
	if code, text, _ := b.raw(t, "DELETE", policiesPath+"/web", "", ""); code != 200 {
		t.Fatal(code, text)
	}
	informer.want("deleted shop/web")
	if err := informer.end(); err != nil {
		t.Error(err)
	}
}
