package jetstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store/mem"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
)

// raw connects as a hostile agent would: with the plain client of NATS.
func (s *site) raw(t *testing.T, certificate *tls.Certificate, options ...nats.Option) (*nats.Conn, error) {
	t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	conn, err := nats.Connect("tls://"+s.server.Address(), append([]nats.Option{
		nats.Secure(config), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.PermissionErrOnSubscribe(true),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // told by what does not happen
	}, options...)...)
	if err == nil {
		t.Cleanup(conn.Close)
	}
	return conn, err
}

func (s *site) certificate(t *testing.T, path string) *tls.Certificate {
	t.Helper()
	svid, err := s.authority.IssueSVID(path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certificate := svid.Certificate()
	return &certificate
}

// forge signs a certificate with the authority's own key, past all its checks.
func (s *site) forge(t *testing.T, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "authority", "authority.pem"))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := tls.X509KeyPair(data, data)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "bocage.local", Path: "/agent/h1"}},
	}
	change(template)
	leaf, err := x509.CreateCertificate(rand.Reader, template, issuer.Leaf, key.Public(), issuer.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}
}

func TestWhoMayConnect(t *testing.T) {
	s := newSite(t, nil)
	stranger := newSite(t, nil)
	spiffe := func(path string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs[0].Path = path }
	}
	tests := []struct {
		name        string
		certificate *tls.Certificate
		options     []nats.Option
		admitted    bool
	}{
		{"an agent", s.certificate(t, "/agent/h1"), nil, true},
		{"an agent that claims to be another by name", s.certificate(t, "/agent/h1"), []nats.Option{nats.UserInfo("spiffe://bocage.local/agent/h2", "x"), nats.Token("x")}, true},
		{"forged like an agent", s.forge(t, func(*x509.Certificate) {}), nil, true}, // or the next ones prove nothing
		{"nobody", nil, nil, false},
		{"nobody with a short nonce", nil, []nats.Option{nats.UserInfo("SHORT", "")}, false},
		{"nobody with a wildcard for a nonce", nil, []nats.Option{nats.UserInfo("AAAAAAAAAAAAAAAAAAAA.>", "")}, false},
		{"nobody with a token", nil, []nats.Option{nats.Token("guess")}, false},
		{"another trust domain's agent", stranger.certificate(t, "/agent/h1"), nil, false},
		{"a workload", s.certificate(t, "/workload/shop/web"), nil, false},
		{"an administrator", s.certificate(t, "/admin/local"), nil, false},
		{"a name with a wildcard", s.forge(t, spiffe("/agent/h1.>")), nil, false},
		{"a name that is a wildcard", s.forge(t, spiffe("/agent/*")), nil, false},
		{"a name with a dot", s.forge(t, spiffe("/agent/h1.h2")), nil, false},
		{"a name in capitals", s.forge(t, spiffe("/agent/H1")), nil, false},
		{"two names", s.forge(t, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "bocage.local", Path: "/agent/h2"})
		}), nil, false},
		{"no name", s.forge(t, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"h1"} }), nil, false},
		{"another domain's name", s.forge(t, func(c *x509.Certificate) { c.URIs[0].Host = "other.local" }), nil, false},
		{"a certificate that may sign", s.forge(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), nil, false},
		{"an expired certificate", s.forge(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-6 * time.Minute) }), nil, false},
		{"a certificate of tomorrow", s.forge(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)
		}), nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn, err := s.raw(t, test.certificate, test.options...)
			if err == nil {
				err = conn.FlushTimeout(5 * time.Second) // TLS 1.3: the client's certificate is judged after its handshake
			}
			if (err == nil) != test.admitted {
				t.Errorf("connect: %v, want admitted %t", err, test.admitted)
			}
		})
	}
}

func TestNothingIsSaidWithoutTLS(t *testing.T) {
	s := newSite(t, nil)
	conn, err := net.Dial("tcp", s.server.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("CONNECT {\"verbose\":false,\"auth_token\":\"x\"}\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	n, _ := conn.Read(answer)
	if text := string(answer[:n]); strings.Contains(text, "INFO") || strings.Contains(text, "PONG") || strings.Contains(text, "version") {
		t.Errorf("a connection without TLS learns %q", text)
	}
	_, err = tls.Dial("tcp", s.server.Address(), &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	if err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestWhatAnAgentMayNotDo(t *testing.T) {
	s := newSite(t, nil)
	log, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), "events.h2", "", []byte("precious")); err != nil {
		t.Fatal(err)
	}
	served := make(chan string, 100)
	for _, subject := range []string{"agent.*.ruleset", "join"} {
		serve(t, s.server.Exchange(), subject, func(_ context.Context, r stream.Request) ([]byte, error) {
			served <- r.Subject + " from " + r.Sender
			return []byte("answer"), nil
		})
	}
	if _, err := ask(t, s.agent(t, "h9").Exchange(), "agent.h9.ruleset", ""); err != nil { // serves now
		t.Fatal(err)
	}
	<-served
	conn, err := s.raw(t, s.certificate(t, "/agent/h1"), nats.CustomInboxPrefix("_INBOX.agent.h1"))
	if err != nil {
		t.Fatal(err)
	}

	for _, subject := range []string{
		"events.h2", "events.h1.x", "events", "agent.h2.ruleset", "agent.h1", "join", "ruleset.revision", "kept.events.h1", "kept.events.h2",
		"$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.MSG.GET.EVENTS",
		"$JS.API.DIRECT.GET.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS", "$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING", "_INBOX.agent.h2.x", "_INBOX.controller.c1.x",
	} {
		if reply, err := conn.Request(subject, []byte("x"), 100*time.Millisecond); err == nil {
			t.Errorf("a question on %s is answered with %q", subject, reply.Data)
		}
	}
	for _, subject := range []string{
		">", "*", "*.>", "events.>", "events.h2", "events.*", "kept.>", "kept.events.h1", "agent.>", "agent.h2.>", "agent.*.ruleset", "join",
		"_INBOX.>", "_INBOX.agent.>", "_INBOX.agent.*.>", "_INBOX.agent.h2.>", "_INBOX.controller.>", "_INBOX.join.>", "$JS.>", "$JS.ACK.>", "$SYS.>", "ruleset.>", "*.revision",
	} {
		if err := denied(conn, subject); err != nil {
			t.Errorf("subscribe to %s: %v", subject, err)
		}
	}
	select {
	case got := <-served:
		t.Errorf("served: %s", got)
	default:
	}
	if first, last, err := log.Bounds(t.Context()); err != nil || first != 1 || last != 1 {
		t.Errorf("the log keeps %d to %d, %v: want the one message", first, last, err)
	}
	// Its own subjects still work on the same connection.
	if reply, err := conn.Request("agent.h1.ruleset", nil, 10*time.Second); err != nil || string(reply.Data) != "answer" {
		t.Errorf("its own question: %v", err)
	}
	if got := <-served; got != "agent.h1.ruleset from spiffe://bocage.local/agent/h1" {
		t.Errorf("served: %s", got)
	}
}

// denied returns nil if the server refuses a subscription.
func denied(conn *nats.Conn, subject string) error {
	s, err := conn.SubscribeSync(subject)
	if err != nil {
		return err
	}
	defer func() { _ = s.Unsubscribe() }() // the server has ended it
	if err := conn.Flush(); err != nil {
		return err
	}
	if _, err = s.NextMsg(5 * time.Second); errors.Is(err, nats.ErrPermissionViolation) {
		return nil
	}
	return fmt.Errorf("it is not refused: %v", err)
}

// An agent cannot make the controller publish where the agent may not: answers
// and acknowledgements go only to the asker's own inbox.
func TestAnswersGoOnlyToTheAsker(t *testing.T) {
	s := newSite(t, nil)
	log, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := log.Append(t.Context(), "events.h2", fmt.Sprint(i), []byte("precious")); err != nil {
			t.Fatal(err)
		}
	}
	var forged atomic.Int64
	serve(t, s.server.Exchange(), "agent.*.status", func(_ context.Context, r stream.Request) ([]byte, error) {
		if r.Sender == "spiffe://bocage.local/agent/h2" {
			forged.Add(1)
		}
		return []byte(`{"seq":5}`), nil // which a purge would take as an order
	})
	heard := make(chan string, 100)
	listening, stop := context.WithCancel(t.Context())
	defer stop()
	victim := s.agent(t, "h2")
	go func() {
		_ = victim.Exchange().Listen(listening, "ruleset.revision", func(_ string, data []byte) { heard <- string(data) })
	}()
	if _, err := ask(t, s.agent(t, "h9").Exchange(), "agent.h9.status", ""); err != nil { // serves now
		t.Fatal(err)
	}
	conn, err := s.raw(t, s.certificate(t, "/agent/h1"))
	if err != nil {
		t.Fatal(err)
	}
	replies := []string{
		"$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.DELETE.EVENTS", "agent.h2.status", "events.h2", "kept.events.h2", "ruleset.revision",
		"_INBOX.agent.h2.guess", "_INBOX.agent.h1.>", "_INBOX.agent.h1", "_INBOX.agent.h10.x", "_INBOX.controller.c1.guess", "join", "",
	}
	for _, reply := range replies {
		for _, subject := range []string{"events.h1", "agent.h1.status"} {
			message := &nats.Msg{Subject: subject, Reply: reply, Data: []byte("x")}
			if err := conn.PublishMsg(message); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	// A question of its own is behind all of these.
	honest, err := s.raw(t, s.certificate(t, "/agent/h1"), nats.CustomInboxPrefix("_INBOX.agent.h1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"events.h1", "agent.h1.status"} {
		if _, err := honest.Request(subject, []byte("x"), 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if first, last, err := log.Bounds(t.Context()); err != nil || first != 1 || last != 6 {
		t.Errorf("the log keeps %d to %d, %v: want 1 to 6", first, last, err)
	}
	if n := forged.Load(); n > 0 {
		t.Errorf("%d questions came in another's name", n)
	}
	if c := s.server.Counters(); c.Refused != uint64(2*len(replies)) {
		t.Errorf("%d questions were refused, want %d", c.Refused, 2*len(replies))
	}
	select {
	case data := <-heard:
		t.Errorf("a forged notice was heard: %q", data)
	default:
	}
}

func TestJoin(t *testing.T) {
	s := newSite(t, nil)
	tokens := &identity.Tokens{Store: mem.New(), Bundle: s.authority.Bundle()}
	serve(t, s.server.Exchange(), "join", func(ctx context.Context, r stream.Request) ([]byte, error) {
		if r.Sender != "" {
			t.Errorf("somebody who joins is %s", r.Sender)
		}
		path, err := tokens.Redeem(ctx, string(r.Data))
		return []byte(path), err
	})
	token, err := tokens.Create(t.Context(), "/agent/h1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	join := func(server *site) (*jetstream.Conn, error) {
		return jetstream.Connect(t.Context(), jetstream.ConnConfig{Addresses: []string{server.server.Address()}, JoinToken: token, Logger: logger(t)})
	}
	conn, err := join(s)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	path, err := ask(t, conn.Exchange(), "join", token)
	if err != nil || path != "/agent/h1" {
		t.Errorf("the answer is %q, %v", path, err)
	}
	if _, err := conn.Exchange().Ask(t.Context(), "join", []byte(token)); err == nil || !strings.Contains(err.Error(), "used") {
		t.Errorf("a token worked twice: %v", err)
	}
	for _, subject := range []string{"agent.h1.ruleset", "events.h1", "ruleset.revision"} {
		if _, err := conn.Exchange().Ask(t.Context(), subject, nil); !errors.Is(err, stream.ErrDenied) {
			t.Errorf("who joins asks on %s: %v, want ErrDenied", subject, err)
		}
	}
	if err := conn.Exchange().Listen(t.Context(), "ruleset.revision", func(string, []byte) {}); !errors.Is(err, stream.ErrDenied) {
		t.Errorf("who joins listens: %v, want ErrDenied", err)
	}
	// Another who joins does not hear the answers.
	other, err := s.raw(t, nil, nats.UserInfo("AAAAAAAAAAAAAAAAAAAAAAAA", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"_INBOX.join.>", "_INBOX.join.*.>", "_INBOX.>", "join"} {
		if err := denied(other, subject); err != nil {
			t.Errorf("subscribe to %s: %v", subject, err)
		}
	}
	// A token is not shown to a controller that did not make it.
	if _, err := join(newSite(t, nil)); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("joining another trust domain's controller: %v, want ErrUntrusted", err)
	}
}

func TestJoiningIsLimited(t *testing.T) {
	s := newSite(t, nil)
	admitted := 0
	for i := range 15 {
		if _, err := s.raw(t, nil, nats.UserInfo(strings.Repeat("A", 20+i), "")); err == nil {
			admitted++
		}
	}
	if admitted < 10 || admitted > 12 { // ten at once, and one a second
		t.Errorf("%d of 15 who joined at once were admitted, want 10", admitted)
	}
	s.agent(t, "h1") // who has a name is not held up
}

func TestRevocation(t *testing.T) {
	var revoked atomic.Bool
	s := newSite(t, func(c *jetstream.ServerConfig) {
		c.Permissions = func(id string) (jetstream.Permissions, error) {
			if revoked.Load() && id == "spiffe://bocage.local/agent/h1" {
				return jetstream.Permissions{}, errors.New("it has been revoked")
			}
			return jetstream.AgentPermissions(id)
		}
	})
	changes := make(chan bool, 100)
	h1, err := s.connect(t, "h1", time.Hour, func(connected bool) { changes <- connected })
	if err != nil {
		t.Fatal(err)
	}
	h2 := s.agent(t, "h2")
	if connected := <-changes; !connected {
		t.Fatal("h1 begins without a connection")
	}
	revoked.Store(true)
	start := time.Now()
	if n := s.server.Disconnect("spiffe://bocage.local/agent/h1"); n != 1 {
		t.Errorf("%d connections were cut, want 1", n)
	}
	if connected := <-changes; connected {
		t.Fatal("h1 still has a connection")
	}
	t.Logf("cut after %s", time.Since(start))
	if _, err := h1.Exchange().Ask(t.Context(), "agent.h1.x", nil); !errors.Is(err, stream.ErrUnavailable) {
		t.Errorf("Ask = %v, want ErrUnavailable", err)
	}
	if _, err := s.connect(t, "h1", time.Hour, nil); !errors.Is(err, stream.ErrDenied) {
		t.Errorf("connecting again: %v, want ErrDenied", err)
	}
	if !h2.Connected() {
		t.Error("another agent was cut too")
	}
	// When it is lifted, the agent comes back by itself.
	revoked.Store(false)
	if connected := <-changes; !connected {
		t.Error("h1 lost a connection that it did not have")
	}
	if n := s.server.Disconnect("spiffe://bocage.local/agent/h7"); n != 0 {
		t.Errorf("%d connections of nobody were cut", n)
	}
}

func TestConnectionEndsWithItsCertificate(t *testing.T) {
	s := newSite(t, nil)
	lost := make(chan struct{})
	certificate := s.forge(t, func(c *x509.Certificate) {
		c.NotAfter = time.Now().Add(2*time.Second - identity.ClockTolerance)
	})
	conn, err := s.raw(t, certificate, nats.DisconnectErrHandler(func(*nats.Conn, error) { close(lost) }))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lost:
	case <-time.After(10 * time.Second):
		t.Error("the connection outlives its certificate")
	}
}

func TestPermissionsNeverWidenAnAgent(t *testing.T) {
	for _, given := range []jetstream.Permissions{
		{Publish: []string{"events.h2"}}, {Publish: []string{"agent.*.status"}}, {Publish: []string{">"}}, {Publish: []string{"agent.>"}},
		{Publish: []string{"ruleset.revision"}}, {Publish: []string{"join"}}, {Publish: []string{"$JS.API.>"}}, {Publish: []string{"_INBOX.agent.h2.>"}},
		{Subscribe: []string{">"}}, {Subscribe: []string{"_INBOX.>"}}, {Subscribe: []string{"*.>"}}, {Subscribe: []string{"agent.>"}},
		{Subscribe: []string{"kept.>"}}, {Subscribe: []string{"events.*"}}, {Subscribe: []string{"join"}}, {Subscribe: []string{"$SYS.>"}}, {Subscribe: []string{""}},
	} {
		s := newSite(t, func(c *jetstream.ServerConfig) {
			c.Permissions = func(string) (jetstream.Permissions, error) { return given, nil }
		})
		if _, err := s.connect(t, "h1", time.Hour, nil); !errors.Is(err, stream.ErrDenied) {
			t.Errorf("an agent that was given %+v connects: %v", given, err)
		}
	}
}

// age makes an authority's certificate begin days ago.
func age(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		t.Fatal(err)
	}
	template := *pair.Leaf
	template.NotBefore = template.NotBefore.Add(-72 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, pair.Leaf.PublicKey, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var aged []byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			block.Bytes = der
		}
		aged = append(aged, pem.EncodeToMemory(block)...)
	}
	if err := os.WriteFile(path, aged, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestConnectionsByTheAgreedTime: how long a connection may last is told by the time that
// certificates are made by, whatever this machine's clock shows.
func TestConnectionsByTheAgreedTime(t *testing.T) {
	for _, off := range []time.Duration{-26 * time.Hour, 26 * time.Hour} {
		s := newSite(t, func(c *jetstream.ServerConfig) {
			dir := filepath.Join(filepath.Dir(c.Dir), "authority")
			age(t, filepath.Join(dir, "authority.pem"))
			authority, err := identity.OpenAuthority(dir, identity.DefaultTrustDomain)
			if err != nil {
				t.Fatal(err)
			}
			authority = authority.By(func() time.Time { return time.Now().Add(off) })
			svid, err := authority.IssueSVID("/controller/c1", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			c.Bundle, c.SVID = authority.Bundle(), func() *identity.SVID { return svid }
		})
		certificate := s.forge(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = c.NotBefore.Add(off), c.NotAfter.Add(off)
		})
		conn, err := s.raw(t, certificate)
		if err != nil {
			t.Errorf("%s off: %v", off, err)
			continue
		}
		for range 10 {
			if err := conn.FlushTimeout(10 * time.Second); err != nil {
				t.Errorf("%s off: the connection goes: %v", off, err)
				break
			}
		}
	}
}
