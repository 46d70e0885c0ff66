package suricata

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

const evil = `drop http any any -> any any (msg:"evil asked for"; http.uri; content:"evil"; classtype:web-application-attack; sid:100; metadata:mitre_technique_id T1190, note any;)
alert http any any -> any any (msg:"odd asked for"; http.uri; content:"odd"; sid:101;)
alert http any any -> any any (msg:"answered"; flow:to_client; http.stat_code; content:"200"; sid:102;)
`

func web(signatures string) bocage.Profile {
	return bocage.Profile{Number: 7, Name: "web", Signatures: signatures}
}

func TestRootExploitIsBlockedAndReported(t *testing.T) {
	b := newBed(t, 7)
	h := b.run(web(evil))
	site := b.serve()

	if status := b.get("http://10.0.7.2/fine", patience); status != 200 {
		t.Fatalf("benign request: status %d", status)
	}
	answered := h.awaitEvent(t, 102)
	if answered.Flow.Source != netip.MustParseAddr("10.0.7.1") || answered.Flow.DestinationPort != 80 || answered.Blocked {
		t.Errorf("event of an answer: %+v: want the client as source", answered)
	}
	asked, status := time.Now(), make(chan int, 1)
	go func() { status <- b.get("http://10.0.7.2/evil", refusal) }()
	event := h.awaitEvent(t, 100)
	if waited := time.Since(asked); waited > time.Second {
		t.Errorf("event reported %s after the request", waited)
	}
	if status := <-status; status != 0 {
		t.Errorf("exploit request: status %d", status)
	}
	want := bocage.InspectionEvent{Time: event.Time, Profile: "web", Signature: 100, Title: "evil asked for",
		Category: "Web Application Attack", Severity: 1, Blocked: true, Technique: "T1190",
		Flow: bocage.Flow{Source: netip.MustParseAddr("10.0.7.1"), Destination: netip.MustParseAddr("10.0.7.2"),
			SourcePort: event.Flow.SourcePort, DestinationPort: 80, Protocol: bocage.ProtocolTCP}}
	if event != want {
		t.Errorf("event\n %+v\nwant\n %+v", event, want)
	}
	if late := event.Time.Sub(asked); late < -time.Second || late > time.Second {
		t.Errorf("event of %s, %s after the request", event.Time, late)
	}
	if site.reached("/evil") {
		t.Error("the exploit reached the server")
	}
	if status := b.get("http://[fd00:7::2]/fine", patience); status != 200 {
		t.Errorf("benign request over IPv6: status %d", status)
	}
	if status := b.get("http://[fd00:7::2]/evil6", refusal); status != 0 || site.reached("/evil6") {
		t.Errorf("exploit over IPv6: status %d", status)
	}
	if event := h.awaitEvent(t, 100); event.Flow.Destination != netip.MustParseAddr("fd00:7::2") {
		t.Errorf("event over IPv6: %+v", event)
	}
	if strings.Contains(b.logged.String(), "level=ERROR") {
		t.Errorf("errors were logged:\n%s", b.logged)
	}
}

type keepAlive struct {
	t      *testing.T
	conn   net.Conn
	answer *bufio.Reader
}

func (b *bed) keepAlive(address string) *keepAlive {
	b.t.Helper()
	conn := b.connect("tcp", address)
	return &keepAlive{b.t, conn, bufio.NewReader(conn)}
}

func (k *keepAlive) ask(path string) {
	k.t.Helper()
	if err := k.try(path, "", patience); err != nil {
		k.t.Fatalf("GET %s over an established connection: %v", path, err)
	}
}

func (k *keepAlive) try(path, body string, patience time.Duration) error {
	k.conn.SetDeadline(time.Now().Add(patience))
	method := "GET"
	if body != "" {
		method = "POST"
	}
	_, err := fmt.Fprintf(k.conn, "%s %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	if err != nil {
		return err
	}
	answer, err := http.ReadResponse(k.answer, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return errors.Join(err, answer.Body.Close())
}

func TestRootProfilesOfDifferentVLANsAreSeparate(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7, 8)
	b.serve()
	h := b.run(
		web(`drop http any any -> any any (msg:"seven"; http.uri; content:"seven"; sid:1;)`),
		bocage.Profile{Number: 8, Name: "db", Signatures: `reject http $EXTERNAL_NET any -> $HTTP_SERVERS $HTTP_PORTS (msg:"eight"; http.uri; content:"eight"; sid:1;)`})
	for _, c := range []struct {
		url     string
		passes  bool
		profile string
	}{
		{"http://10.0.7.2/seven", false, "web"}, {"http://10.0.7.2/eight", true, ""},
		{"http://10.0.8.2/seven", true, ""}, {"http://10.0.8.2/eight", false, "db"},
	} {
		wait := refusal
		if c.passes {
			wait = patience
		}
		if passed := b.get(c.url, wait) == 200; passed != c.passes {
			t.Errorf("%s passed: %t, want %t", c.url, passed, c.passes)
		}
		if c.passes {
			continue
		}
		if e := h.awaitEvent(t, 1); e.Profile != c.profile || !e.Blocked || e.Flow.Destination.String() != strings.Split(c.url, "/")[2] {
			t.Errorf("%s: event %+v, want profile %s", c.url, e, c.profile)
		}
	}
}

func TestRootFlowsFromBeforeSteeringLiveAndAreInspected(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	l := b.listen(":9000")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(conn, conn)
		}
	}()
	h := b.run(web(`alert tcp any any -> any any (msg:"marker"; content:"marker-in-the-middle"; sid:1;)` + "\n" +
		`drop tcp any any -> any any (msg:"end"; content:"marker-of-the-end"; sid:2;)`))
	b.wire.steering.Store(false)
	conn := b.connect("tcp", "10.0.7.2:9000")
	echo := func(s string) error {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, s); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, len(s)))
		return err
	}
	b.must(echo("before"))
	b.wire.steering.Store(true)
	for i := range 50 {
		b.must(echo(fmt.Sprintf("steered %d", i)))
	}
	b.must(echo("marker-in-the-middle"))
	e := h.awaitEvent(t, 1)
	if e.Flow.Source.String() != "10.0.7.1" || e.Flow.DestinationPort != 9000 {
		t.Errorf("event %+v: want the client as source", e)
	}
	b.wire.steering.Store(false)
	b.must(echo("not steered"))
	b.wire.steering.Store(true)
	b.must(echo("steered again"))
	conn.SetDeadline(time.Now().Add(refusal))
	io.WriteString(conn, "marker-of-the-end")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
		t.Error("the marker passed")
	}
}

func TestRootFragmentsSurviveAndAreInspected(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	h := b.run(web(`alert udp any any -> any 9000 (msg:"across"; content:"begins here"; content:"ends here"; distance:1400; sid:1;)` + "\n" +
		`drop udp any any -> any 9000 (msg:"bad"; content:"never"; offset:3000; sid:2;)`))
	for _, address := range []string{"10.0.7.2:9000", "[fd00:7::2]:9000"} {
		var server net.PacketConn
		b.must(host.In(b.server, func() (err error) {
			server, err = net.ListenPacket("udp", address)
			return err
		}))
		defer server.Close()
		client := b.connect("udp", address)
		datagram := bytes.Repeat([]byte("."), 4000)
		copy(datagram[1400:], "begins here")
		copy(datagram[3990:], "ends here")
		if _, err := client.Write(datagram); err != nil {
			t.Fatal(err)
		}
		server.SetDeadline(time.Now().Add(patience))
		got := make([]byte, 5000)
		n, _, err := server.ReadFrom(got)
		if err != nil || !bytes.Equal(got[:n], datagram) {
			t.Fatalf("%s: datagram of 4000 bytes arrived as %d bytes: %v", address, n, err)
		}
		if e := h.awaitEvent(t, 1); e.Flow.Protocol != bocage.ProtocolUDP || e.Flow.DestinationPort != 9000 {
			t.Errorf("%s: event %+v", address, e)
		}
		copy(datagram[3500:], "never")
		client.Write(datagram)
		h.awaitEvent(t, 2)
		server.SetDeadline(time.Now().Add(refusal))
		if n, _, err := server.ReadFrom(got); err == nil {
			t.Errorf("%s: a forbidden datagram of %d bytes in fragments arrived", address, n)
		}
	}
}

func TestRootExploitInOddFramingsIsBlocked(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	site := b.serve()
	h := b.run(web(evil + `drop http any any -> any any (msg:"body"; http.request_body; content:"evil-body"; sid:104;)` + "\n"))
	filler := strings.Repeat("x", 64<<10)
	for _, c := range []struct {
		name string
		send func(io.Writer) // one request or more, the last of them evil
	}{
		{"byte by byte", func(w io.Writer) {
			for _, b := range []byte("GET /evil1 HTTP/1.1\r\nHost: h\r\n\r\n") {
				w.Write([]byte{b})
			}
		}},
		{"percent-encoded", func(w io.Writer) { io.WriteString(w, "GET /%65%76%69%6C HTTP/1.1\r\nHost: h\r\n\r\n") }},
		{"lower case method and folded header", func(w io.Writer) {
			io.WriteString(w, "GET   /evil2 HTTP/1.1\r\nX: a\r\n b\r\nHost: h\r\n\r\n")
		}},
		{"behind two megabytes on one connection", func(w io.Writer) {
			for range 32 {
				fmt.Fprintf(w, "POST /fine HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(filler), filler)
			}
			io.WriteString(w, "GET /evil3 HTTP/1.1\r\nHost: h\r\n\r\n")
		}},
		{"at the end of a body of a megabyte", func(w io.Writer) {
			body := strings.Repeat(filler, 16) + "evil-body"
			fmt.Fprintf(w, "POST /long HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", len(body))
			io.WriteString(w, body)
		}},
		{"chunked", func(w io.Writer) {
			io.WriteString(w, "POST /in-chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nevi\r\n6\r\nl-body\r\n0\r\n\r\n")
		}},
	} {
		conn := b.connect("tcp", "10.0.7.2:80")
		conn.(*net.TCPConn).SetNoDelay(true)
		go io.Copy(io.Discard, conn)
		conn.SetWriteDeadline(time.Now().Add(patience))
		sent := make(chan struct{})
		go func() { defer close(sent); c.send(conn) }()
		select {
		case e := <-h.blocked():
			t.Logf("%s: blocked by %q", c.name, e.Title)
		case <-time.After(patience):
			t.Errorf("%s: was not blocked", c.name)
		}
		conn.Close()
		<-sent
		for _, bad := range []string{"evil", "%65", "/long", "/in-chunks"} {
			if reached := site.seen(bad); len(reached) != 0 {
				t.Errorf("%s: reached the server: %q", c.name, reached)
			}
		}
	}
}

func (h *held) blocked() <-chan bocage.InspectionEvent {
	found := make(chan bocage.InspectionEvent, 1)
	go func() {
		for e := range h.events {
			if e.Blocked {
				found <- e
				return
			}
		}
	}()
	return found
}

func (s *site) seen(part string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for _, p := range s.paths {
		if strings.Contains(p, part) {
			found = append(found, p)
		}
	}
	return found
}

func TestRootBulkSurvivesCrashesOfTheEngine(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	const size = 24 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	l := b.listen(":9000")
	sum := make(chan [32]byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		got, _ := io.ReadAll(io.TeeReader(conn, conn)) // both ways
		sum <- sha256.Sum256(got)
	}()
	h := b.run(web(evil))
	conn := b.connect("tcp", "10.0.7.2:9000").(*net.TCPConn)
	conn.SetDeadline(time.Now().Add(3 * patience))
	back := make(chan error, 1)
	go func() {
		got, err := io.ReadAll(conn)
		if err == nil && !bytes.Equal(got, data) {
			err = fmt.Errorf("%d bytes came back, other than were sent", len(got))
		}
		back <- err
	}()
	for i := range 4 {
		if _, err := conn.Write(data[i*size/4 : (i+1)*size/4]); err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			b.must(unix.Kill(h.running().id.Pid, unix.SIGKILL))
			h.awaitState(t, false)
			h.awaitState(t, true)
		}
	}
	conn.CloseWrite()
	b.must(<-back)
	if <-sum != sha256.Sum256(data) {
		t.Error("the server got other bytes than were sent")
	}
	for len(h.events) > 0 {
		if e := <-h.events; e.Blocked {
			t.Errorf("blocked: %+v", e)
		}
	}
}
