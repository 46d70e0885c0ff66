package api

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestKubectl tells the stories of testdata/kubectl with the real kubectl, which
// the tools module pins. Each story has a server of its own.
func TestKubectl(t *testing.T) {
	if testing.Short() {
		t.Skip("kubectl may have to be built, which takes minutes")
	}
	kubectl := kubectlPath(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/kubectl", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			b := start(t, nil)
			b.kubeconfig(t, filepath.Join(env.WorkDir, "kubeconfig"), RoleAdmin)
			b.kubeconfig(t, filepath.Join(env.WorkDir, "owner"), RoleOwner, "shop")
			env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, "kubeconfig"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("SOCKET", b.socket)
			env.Setenv("PATH", filepath.Dir(kubectl)+string(os.PathListSeparator)+env.Getenv("PATH"))
			return nil
		},
	})
}

// kubectlPath finds kubectl, or builds it once for all who test at the same time.
func kubectlPath(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("BOCAGE_KUBECTL"); path != "" {
		return path
	}
	path, err := filepath.Abs("../.bin/kubectl")
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
	t.Log("building kubectl, once")
	build := exec.Command("nice", "go", "build", "-o", path, "./cmd/kubectl")
	build.Dir = "../tools"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kubectl: %v\n%s", err, out)
	}
	return path
}

// kubeconfig writes a file with which kubectl reaches the server with a session
// of a role.
func (b *bench) kubeconfig(t *testing.T, path string, role Role, namespaces ...string) {
	t.Helper()
	session, err := b.server.createSession(t.Context(), Person{Name: "token:kubectl-" + string(role), Role: role, Namespaces: namespaces}, defaultSession)
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
