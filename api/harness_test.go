package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// bench is a running server with everything that a test needs to talk to it.
type bench struct {
	server    *Server
	store     store.Store
	client    *client.Client // as the local administrator
	socket    string
	address   string // https://...
	authority *identity.Authority
	log       *logBuffer
	stop      func() // ends the server, which otherwise the test's end does
}

// logBuffer keeps the log for the tests that read it.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(data)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start runs a server on a unix socket, and on TLS if change asks for it by
// leaving Listen as it is.
func start(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	// Paths of unix sockets are short, so t.TempDir may be too long.
	dir := shortDir(t)
	authority, err := identity.OpenAuthority(filepath.Join(dir, "authority"), "test.local")
	if err != nil {
		t.Fatal(err)
	}
	svid, err := authority.IssueSVID("/controller/c1", time.Hour, identity.IssueOptions{DNSNames: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{socket: filepath.Join(dir, "api.sock"), authority: authority, log: &logBuffer{}}
	config := Config{
		Store: mem.New(), TrustDomain: "test.local", Socket: b.socket, Listen: "127.0.0.1:0",
		SVID: func() *identity.SVID { return svid }, Bundle: authority.Bundle(),
		Logger: slog.New(slog.NewJSONHandler(b.log, nil)),
	}
	if change != nil {
		change(&config)
	}
	b.store = config.Store
	if b.server, err = New(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(b.stop)
	addresses, err := b.server.Addresses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(addresses) > 1 {
		b.address = "https://" + addresses[1].String()
	}
	if b.client, err = client.New(client.Config{Socket: b.socket}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.client.Close)
	return b
}

// shortDir is a folder for sockets, which have short names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// as returns a client over TLS with a session of its own.
func (b *bench) as(t *testing.T, role Role, namespaces ...string) *client.Client {
	t.Helper()
	session, err := b.client.CreateSession(t.Context(), client.Person{
		Name: "tester", Role: string(role), Namespaces: namespaces,
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b.withToken(t, session.Token)
}

func (b *bench) withToken(t *testing.T, token string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{
		Address: b.address, Token: token,
		TLS: identity.ClientTLS(func() *identity.SVID { return nil }, b.authority.Bundle(), "/controller/"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// raw makes a request as the local administrator, for what the client does not do.
func (b *bench) raw(t *testing.T, method, path, contentType, body string, headers ...string) (int, string, http.Header) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://bocage"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := (&http.Client{Transport: unixTransport(b.socket)}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(data), answer.Header
}

// documents reads YAML that has no faults.
func documents(t *testing.T, text string) []manifest.Document {
	t.Helper()
	found, faults := manifest.Read("test.yaml", []byte(text))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return found
}

func kind(name string) bocage.Kind { return kindNamed(name) }

func scope(name, mode string) *bocage.Scope {
	return &bocage.Scope{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ScopeSpec{Mode: mode}}
}

func workload(namespace, name, host, port, address string) string {
	return fmt.Sprintf("apiVersion: bocage.dev/v1\nkind: Workload\nmetadata: {name: %s, namespace: %s}\nspec: {host: %s, interface: %s, addresses: [%s]}\n",
		name, namespace, host, port, address)
}
