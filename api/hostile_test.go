package api

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bocage.dev/bocage/identity"
)

// heapPeak samples how much memory a test's process holds, until it is stopped.
func heapPeak(t *testing.T) (most func() uint64) {
	t.Helper()
	var peak atomic.Uint64
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapAlloc))
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 { close(done); <-ended; return peak.Load() }
}

// manyRules is an Application with n offers.
func manyRules(n int) string {
	var text strings.Builder
	text.WriteString(`{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"name":"web"},"spec":{"workload":{},"provides":[`)
	for i := range n {
		if i > 0 {
			text.WriteByte(',')
		}
		fmt.Fprintf(&text, `{"name":"p%d","port":%d}`, i, 1+i%65535)
	}
	text.WriteString(`]}}`)
	return text.String()
}

// TestHostileRequests: whatever is sent, the answer is clear, in time, and costs no
// more memory than its limits allow.
func TestHostileRequests(t *testing.T) {
	b := start(t, nil)
	peak := heapPeak(t)
	const scopes = "/apis/bocage.dev/v1/scopes"
	b.mustScope(t, "POST", "a", "")
	scopeNamed := func(name string) string {
		return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":%q},"spec":{"mode":"observe"}}`, name)
	}
	requirements := func(n int) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = fmt.Sprintf("k%d!=v", i)
		}
		return url.QueryEscape(strings.Join(parts, ","))
	}
	doubling := `[{"op":"add","path":"/metadata/annotations","value":{"a0":"` + strings.Repeat("x", 1000) + `"}}`
	for i := range 40 {
		doubling += fmt.Sprintf(`,{"op":"copy","from":"/metadata/annotations","path":"/metadata/annotations/b%d"}`, i)
	}
	doubling += "]"
	tests := []struct {
		name, method, path, contentType, body string
		code                                  int
		want                                  string
	}{
		{"more than 10 MB", "POST", scopes, jsonType, `{"x":"` + strings.Repeat("x", 10<<20) + `"}`, 413, "larger than"},
		{"10 MB of brackets", "POST", scopes, jsonType, strings.Repeat("[", 9<<20), 400, "more than 1048576 values"},
		{"maps within maps", "POST", scopes, jsonType, strings.Repeat(`{"a":`, 100_000), 400, "levels deep"},
		{"a deep YAML", "POST", scopes, "application/yaml", strings.Repeat("- ", 5000), 400, "nested deeper than 64"},
		{"a deep YAML in flow style", "POST", scopes, "application/yaml", strings.Repeat("[", 100_000), 400, ""},
		{"10 MB of commas", "POST", scopes, jsonType, `{"a":[` + strings.Repeat("0,", 5<<20-20) + `0]}`, 400, ""},
		{"a billion laughs", "POST", scopes, "application/yaml", bombYAML(), 400, "expand to more than"},
		{"200,000 rules", "POST", appsPath, jsonType, manyRules(200_000), 413, "larger than the 4 MiB"},
		{"100,000 rules", "POST", appsPath, jsonType, manyRules(100_000), 201, ""},
		{"a key given twice", "POST", scopes, jsonType, `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"x","name":"y"},"spec":{"mode":"observe"}}`, 422, "metadata.name: stands twice"},
		{"a key given twice in YAML", "POST", scopes, "application/yaml", "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: x}\nspec: {mode: observe}\nspec: {mode: enforce}\n", 422, "spec: stands twice: first in line 4"},
		{"a name in another script", "POST", scopes, jsonType, scopeNamed("bär"), 422, "DNS name"},
		{"a name that looks like another", "POST", scopes, jsonType, scopeNamed("sсope"), 422, "DNS name"},
		{"a name that turns the text around", "POST", scopes, jsonType, scopeNamed("a\u202eb"), 422, "DNS name"},
		{"a name with a NUL", "POST", scopes, jsonType, strings.Replace(scopeNamed("NAME"), "NAME", `a\u0000b`, 1), 422, "holds a NUL"},
		{"half a surrogate", "POST", scopes, jsonType, strings.Replace(scopeNamed("NAME"), "NAME", `\ud800`, 1), 422, "DNS name"},
		{"bytes that are no UTF-8", "POST", scopes, jsonType, strings.Replace(scopeNamed("NAME"), "NAME", "\xff\xfe", 1), 400, ""},
		{"a long name", "POST", scopes, jsonType, scopeNamed(strings.Repeat("a", 300)), 422, "DNS name"},
		{"a path that climbs", "GET", scopes + "/%2e%2e%2fa", "", "", 404, ""},
		{"a path with a NUL", "GET", scopes + "/a%00", "", "", 404, ""},
		{"a huge number", "PATCH", scopes + "/a", mergeType, `{"spec":{"mode":1e999}}`, 422, "is a number where text is needed"},
		{"a long selector", "GET", scopes + "?labelSelector=" + strings.Repeat("a", 17<<10), "", "", 400, "characters"},
		{"a selector of many parts", "GET", scopes + "?labelSelector=" + requirements(200), "", "", 400, "at most 128"},
		{"fields of many parts", "GET", scopes + "?fieldSelector=" + strings.Repeat("metadata.name%21%3Dx,", 200) + "metadata.name%21%3Dx", "", "", 400, "at most 128"},
		{"a selector that is none", "GET", scopes + "?labelSelector=%28%28%28", "", "", 400, "cannot be read"},
		{"a token that is none", "GET", scopes + "?limit=1&continue=%21%21", "", "", 400, "continue"},
		{"a token of something else", "GET", scopes + "?limit=1&continue=" + base64.RawURLEncoding.EncodeToString([]byte(`{"v":"meta.k8s.io/v1","rv":-5,"start":"../../x"}`)), "", "", 400, "continue"},
		{"a long token", "GET", scopes + "?limit=1&continue=" + strings.Repeat("A", 30_000), "", "", 400, "continue"},
		{"a negative revision", "GET", scopes + "?resourceVersion=-1", "", "", 400, ""},
		{"a revision that is to come", "GET", scopes + "?resourceVersion=99999999999&resourceVersionMatch=Exact", "", "", 504, "Too large resource version"},
		{"a negative limit", "GET", scopes + "?limit=-1", "", "", 400, "limit"},
		{"copies of copies", "PATCH", scopes + "/a", "application/json-patch+json", doubling, 422, ""},
		{"100,000 operations", "PATCH", scopes + "/a", "application/json-patch+json", "[" + strings.Repeat(`{"op":"test","path":"/a","value":1},`, 100_000) + `{"op":"test","path":"/a","value":1}]`, 413, "operations"},
		{"a deep merge", "PATCH", scopes + "/a", mergeType, strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000), 400, ""},
		{"annotations of 5 MB", "PATCH", scopes + "/a", mergeType, `{"metadata":{"annotations":{"a":"` + strings.Repeat("x", 5<<20) + `"}}}`, 413, "larger than the 4 MiB"},
		{"a gzip bomb", "POST", scopes, jsonType, "x", 0, ""},
	}
	for _, test := range tests {
		began := time.Now()
		var headers []string
		if test.name == "a gzip bomb" {
			headers = []string{"Content-Encoding", "gzip"}
			test.code, test.want = 415, "send it as it is"
		}
		code, text, _ := b.raw(t, test.method, test.path, test.contentType, test.body, headers...)
		if code != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s: %d %.400s, want %d %q", test.name, code, text, test.code, test.want)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s took %s", test.name, took)
		}
	}
	if most := peak(); most > 640<<20 {
		t.Errorf("%d MiB were needed", most>>20)
	} else {
		t.Logf("at most %d MiB", most>>20)
	}
	if code, text, _ := b.raw(t, "GET", scopes+"/a", "", ""); code != 200 || !strings.Contains(text, `"mode":"observe"`) || strings.Contains(text, "annotations") {
		t.Errorf("something came through: %d %s", code, text)
	}
}

// bombYAML expands to a billion values.
func bombYAML() string {
	text := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	return text
}

// dial opens a TLS connection to the server that speaks a protocol, without a
// certificate.
func (b *bench) dial(t *testing.T, protocol string) *tls.Conn {
	t.Helper()
	config := identity.ClientTLS(func() *identity.SVID { return nil }, b.authority.Bundle(), "/controller/")
	config.NextProtos = []string{protocol}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(b.address, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestHalfOpenConnections: whoever opens connections and says nothing loses the
// oldest of them, and everybody else is served meanwhile.
func TestHalfOpenConnections(t *testing.T) {
	b := start(t, nil)
	alice := b.as(t, RoleViewer)
	peak := heapPeak(t)
	address := strings.TrimPrefix(b.address, "https://")
	const count = mostHalfOpen + 300
	var silent []net.Conn
	t.Cleanup(func() {
		for _, conn := range silent {
			_ = conn.Close()
		}
	})
	for range count {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, conn)
	}
	for _, conn := range silent[:100] {
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("one of the oldest is still open: %v", err)
		}
	}
	if _, err := alice.WhoAmI(t.Context()); err != nil {
		t.Errorf("somebody else meanwhile: %v", err)
	}
	if _, text, _ := b.raw(t, "GET", "/metrics", "", ""); !strings.Contains(text, `bocage_api_refused_total{limit="connections"} 30`) {
		t.Errorf("they were not counted: %s", text)
	}
	if most := peak(); most > 256<<20 {
		t.Errorf("%d MiB were needed", most>>20)
	}
}

// TestConnectionsAreBounded counts by the states that a server tells.
func TestConnectionsAreBounded(t *testing.T) {
	refused := 0
	c := newConnections(-moreConnections+3, func() { refused++ })
	c.halfOpen = 2
	open := func() *pipe { p := newPipe(t); c.changed(p, http.StateNew); return p }
	first, second := open(), open()
	c.changed(second, http.StateActive)
	third := open()
	if refused != 0 || first.closed || third.closed {
		t.Fatalf("refused %d too early", refused)
	}
	c.changed(third, http.StateActive)
	fourth := open() // one too many of all
	if refused != 1 || !fourth.closed || first.closed {
		t.Errorf("refused %d; the fourth of three is closed: %v", refused, fourth.closed)
	}
	c.changed(fourth, http.StateClosed)
	c.changed(third, http.StateIdle)
	c.changed(third, http.StateClosed)
	fifth := open()
	if fifth.closed {
		t.Error("one that went leaves its place")
	}
	c.changed(second, http.StateClosed)
	if sixth := open(); sixth.closed || !first.closed || refused != 2 {
		t.Errorf("the oldest that said nothing goes: %v", first.closed)
	}
	c.changed(first, http.StateClosed)
	if len(c.open) != 2 || c.waiting.Len() != 2 {
		t.Errorf("%d are open and %d wait", len(c.open), c.waiting.Len())
	}
}

// pipe is a connection that says whether it was closed.
type pipe struct {
	net.Conn
	closed bool
}

func newPipe(t *testing.T) *pipe {
	t.Helper()
	one, other := net.Pipe()
	t.Cleanup(func() { _, _ = one.Close(), other.Close() })
	return &pipe{Conn: one}
}

func (p *pipe) Close() error { p.closed = true; return p.Conn.Close() }

// TestRapidReset: streams that are opened and given up at once, as many as fit, end
// the connection that does so and nothing else.
func TestRapidReset(t *testing.T) {
	b := start(t, nil)
	alice := b.as(t, RoleViewer)
	peak := heapPeak(t)
	conn := b.dial(t, "h2")
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	buffered := bufio.NewWriterSize(conn, 64<<10)
	framer := http2.NewFramer(buffered, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	var err error
	sent := 0
	for ; sent < 50_000 && err == nil; sent++ {
		block.Reset()
		for _, field := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/apis/bocage.dev/v1/scopes?watch=1"}} {
			if err := encoder.WriteField(field); err != nil {
				t.Fatal(err)
			}
		}
		id := uint32(2*sent + 1)
		err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		if err == nil {
			err = framer.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err == nil && sent%100 == 0 {
			err = buffered.Flush()
		}
	}
	t.Logf("%d streams: %v", sent, err)
	if _, err := alice.WhoAmI(t.Context()); err != nil {
		t.Errorf("somebody else meanwhile: %v", err)
	}
	if most := peak(); most > 256<<20 {
		t.Errorf("%d MiB were needed", most>>20)
	}
}

// TestSlowHeaders: a request that never gets to its end is given up.
func TestSlowHeaders(t *testing.T) {
	b := start(t, nil)
	conn := b.dial(t, "http/1.1")
	if _, err := conn.Write([]byte("GET /apis HTTP/1.1\r\nHost: x\r\n")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(3 * readHeaderLimit)); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-tick.C:
				if _, err := conn.Write([]byte("X-Slow: a\r\n")); err != nil {
					return
				}
			case <-done:
				return
			}
		}
	}()
	if n, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it is still open after %s (%d bytes)", time.Since(began), n)
	}
}

// TestStrangersDoNotStay: who cannot say who they are keeps no connection.
func TestStrangersDoNotStay(t *testing.T) {
	b := start(t, nil)
	conn := b.dial(t, "http/1.1")
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("GET /apis HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 401") || !strings.Contains(string(answer), "Connection: close") {
		t.Errorf("%.300s %v", answer, err)
	}
}

// TestNobodyTakesAllWatches: three quarters are what one person may have.
func TestNobodyTakesAllWatches(t *testing.T) {
	l := newLimits(0, 8)
	for range 6 {
		if !l.watch("ann") {
			t.Fatal("ann has her share")
		}
	}
	if l.watch("ann") || !l.watch("bob") || !l.watch("bob") || l.watch("bob") || l.following() != 8 {
		t.Error("the rest is for others")
	}
	for range 6 {
		l.leave("ann")
	}
	if l.following() != 2 || len(l.of) != 1 || !l.watch("bob") {
		t.Errorf("what was left is free: %+v", l.of)
	}
}
