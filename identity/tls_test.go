package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store/mem"
)

func always(s *identity.SVID) func() *identity.SVID { return func() *identity.SVID { return s } }

// shake connects a client and a server and returns whom each sees.
func shake(t *testing.T, server, client *tls.Config) (seenByServer, seenByClient string, err error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	type result struct {
		id  string
		err error
	}
	served := make(chan result, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			served <- result{"", err}
			return
		}
		defer conn.Close()
		secure := tls.Server(conn, server)
		if err = secure.Handshake(); err == nil {
			_, err = secure.Write([]byte("hello"))
		}
		state := secure.ConnectionState()
		id, _ := identity.Peer(&state)
		served <- result{id, err}
	}()
	dialer := net.Dialer{Timeout: 10 * time.Second}
	conn, clientErr := tls.DialWithDialer(&dialer, "tcp", listener.Addr().String(), client)
	if clientErr == nil {
		defer conn.Close()
		_, clientErr = conn.Read(make([]byte, 5)) // TLS 1.3: what the server thinks of us comes later
		state := conn.ConnectionState()
		seenByClient, _ = identity.Peer(&state)
	}
	r := <-served
	return r.id, seenByClient, errors.Join(r.err, clientErr)
}

func TestTLS(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	controller, agent := issue(t, a, "/controller/c1"), issue(t, a, "/agent/h1")
	stranger, impostor := issue(t, other, "/agent/h1"), issue(t, other, "/controller/c1")
	server := identity.ServerTLS(always(controller), a.Bundle())
	nobody := func() *identity.SVID { return nil }
	tests := []struct {
		name   string
		server *tls.Config
		client *tls.Config
		sees   string
		valid  bool
	}{
		{"an agent", server, identity.ClientTLS(always(agent), a.Bundle(), "/controller/c1"), agent.ID(), true},
		{"any controller will do", server, identity.ClientTLS(always(agent), a.Bundle(), "/controller/"), agent.ID(), true},
		{"a client without a name", server, identity.ClientTLS(nobody, a.Bundle(), "/controller/c1"), "", true},
		{"another controller is wanted", server, identity.ClientTLS(always(agent), a.Bundle(), "/controller/c2"), "", false},
		{"a prefix is not a name", server, identity.ClientTLS(always(agent), a.Bundle(), "/controller/c"), "", false},
		{"a client of another domain", server, identity.ClientTLS(always(stranger), a.Bundle(), "/controller/c1"), "", false},
		{"a server of another domain", identity.ServerTLS(always(impostor), other.Bundle()), identity.ClientTLS(nobody, a.Bundle(), "/controller/c1"), "", false},
		{"an agent that plays server", identity.ServerTLS(always(agent), a.Bundle()), identity.ClientTLS(nobody, a.Bundle(), "/controller/"), "", false},
		{"a server without a name", identity.ServerTLS(nobody, a.Bundle()), identity.ClientTLS(nobody, a.Bundle(), "/controller/c1"), "", false},
		{"TLS 1.2", server, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			seenByServer, seenByClient, err := shake(t, test.server, test.client)
			if (err == nil) != test.valid {
				t.Fatalf("handshake: %v, want valid %t", err, test.valid)
			}
			if err == nil && (seenByServer != test.sees || seenByClient != controller.ID()) {
				t.Errorf("server sees %q and client %q", seenByServer, seenByClient)
			}
		})
	}
}

func TestTLSTakesARenewedIdentity(t *testing.T) {
	a := newAuthority(t)
	var current atomic.Pointer[identity.SVID]
	server := identity.ServerTLS(current.Load, a.Bundle())
	client := identity.ClientTLS(always(issue(t, a, "/agent/h1")), a.Bundle(), "/controller/c1")
	if _, _, err := shake(t, server, client); err == nil {
		t.Error("a server without a name was believed")
	}
	current.Store(issue(t, a, "/controller/c1"))
	if _, _, err := shake(t, server, client); err != nil {
		t.Error(err)
	}
}

func TestStockClientsBelieveTheServer(t *testing.T) {
	a := newAuthority(t)
	server := identity.ServerTLS(always(issue(t, a, "/controller/c1", identity.IssueOptions{
		DNSNames: []string{"localhost"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})), a.Bundle())
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Bundle().MarshalPEM())
	for _, name := range []string{"localhost", "127.0.0.1"} {
		if _, _, err := shake(t, server, &tls.Config{RootCAs: roots, ServerName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPeerOfNobody(t *testing.T) {
	for _, state := range []*tls.ConnectionState{nil, {}, {HandshakeComplete: true}} {
		if id, ok := identity.Peer(state); ok || id != "" {
			t.Errorf("Peer = %q, %t", id, ok)
		}
	}
}

func TestJoinTLS(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	tokens := identity.Tokens{Store: mem.New(), Bundle: a.Bundle()}
	token, err := tokens.Create(t.Context(), "/agent/h1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	client, err := identity.JoinTLS(token)
	if err != nil {
		t.Fatal(err)
	}
	if _, sees, err := shake(t, identity.ServerTLS(always(issue(t, a, "/controller/c1")), a.Bundle()), client); err != nil || sees != "spiffe://bocage.local/controller/c1" {
		t.Errorf("joining sees %q, %v", sees, err)
	}
	for name, server := range map[string]*tls.Config{
		"another domain's controller":            identity.ServerTLS(always(issue(t, other, "/controller/c1")), other.Bundle()),
		"another's controller under our anchors": identity.ServerTLS(always(issue(t, other, "/controller/c1")), a.Bundle()),
		"an agent":                               identity.ServerTLS(always(issue(t, a, "/agent/h1")), a.Bundle()),
	} {
		if _, _, err := shake(t, server, client); !errors.Is(err, identity.ErrUntrusted) {
			t.Errorf("%s: %v, want ErrUntrusted", name, err)
		}
	}
	for _, malformed := range []string{"", "x", "bocage-join", "bocage-join..", token[1:], token[:len(token)-1], token + ".x", strings.ToUpper(token)} {
		if _, err := identity.JoinTLS(malformed); err == nil {
			t.Errorf("%q was taken for a token", malformed)
		}
	}
}
