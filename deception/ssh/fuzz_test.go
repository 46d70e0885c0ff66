package ssh

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

func FuzzIdentification(f *testing.F) {
	for _, p := range probes() {
		f.Add(bytes.Join(p.send, nil))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		line, err := readIdentification(bytes.NewReader(in))
		if len(line) > maxIdentification+1 {
			t.Errorf("%d bytes were kept", len(line))
		}
		if err == nil && strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("%q is taken", line)
		}
		if checkIdentification(line) == nil && !strings.HasPrefix(line, "SSH-") {
			t.Errorf("%q is an identification", line)
		}
	})
}

func FuzzKexInit(f *testing.F) {
	f.Add(profileOf(DefaultBanner).proposal())
	f.Add([]byte{msgKexInit})
	f.Fuzz(func(t *testing.T, message []byte) {
		k, err := parseKexInit(message)
		if err != nil {
			return
		}
		if len(k.fingerprint()) != 32 {
			t.Error("no fingerprint")
		}
		p := profileOf(DefaultBanner)
		k.guessedRight(p)
		if s, err := p.agree(k); err == nil && kexMethods[s.kex].run == nil {
			t.Errorf("agreed on %q", s.kex)
		}
	})
}

func FuzzLogin(f *testing.F) {
	f.Add([]byte("\x32\x00\x00\x00\x04root\x00\x00\x00\x0essh-connection\x00\x00\x00\x08password\x00\x00\x00\x00\x01x"))
	f.Add([]byte("\x32\x00\x00\x00\x04root\x00\x00\x00\x0essh-connection\x00\x00\x00\x09publickey\x00\x00\x00\x00\x01x\x00\x00\x00\x01y"))
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) == 0 {
			return
		}
		r, err := parseLogin(message)
		if err == nil {
			c := &session{report: func(bocage.Depth, map[string]string) {}}
			c.reportLogin(r, "refused")
		}
	})
}

// script is a connection whose client says what it says and hears nothing.
type script struct{ io.Reader }

func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 22} }
func (script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 1} }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// Whatever a client sends, a session ends with it and tells at most one probe.
func FuzzSession(f *testing.F) {
	for _, p := range probes() {
		f.Add(bytes.Join(p.send, nil))
	}
	server, err := New(Config{Secret: []byte("fuzz")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		told := 0
		server.Serve(context.Background(), script{bytes.NewReader(in)}, func(bocage.Depth, map[string]string) { told++ })
		if told > 1 {
			t.Errorf("%d events without a login", told)
		}
	})
}

// Whatever one who got in sends, the session ends with it.
func FuzzChannels(f *testing.F) {
	open := "\x5a\x00\x00\x00\x07session\x00\x00\x00\x05\x00\x00\x10\x00\x00\x00\x10\x00"
	request := func(kind, rest string) string {
		return "\x62\x00\x00\x00\x00" + string(encodeString([]byte(kind))) + "\x01" + rest
	}
	join := func(messages ...string) []byte {
		var out []byte
		for _, m := range messages {
			out = append(out, padded([]byte(m))...)
		}
		return out
	}
	f.Add(join(open, request("exec", string(encodeString([]byte("id; cat"))))))
	f.Add(join(open, request("pty-req", ""), request("shell", ""), "\x5e\x00\x00\x00\x00"+string(encodeString([]byte("id\r\x1b[A\r\x04")))))
	f.Add(join(open, request("subsystem", string(encodeString([]byte("sftp")))), "\x60\x00\x00\x00\x00", "\x61\x00\x00\x00\x00"))
	f.Add(join("\x5a\x00\x00\x00\x0cdirect-tcpip\x00\x00\x00\x05\x00\x00\x10\x00\x00\x00\x10\x00" + string(encodeString([]byte("h"))) + "\x00\x00\x00\x19"))
	f.Add(join("\x50\x00\x00\x00\x1dhostkeys-prove-00@openssh.com\x01" + string(encodeString([]byte("k")))))
	f.Add(join(open, "\x5d\x00\x00\x00\x00\xff\xff\xff\xff", "\x14"))
	server, err := New(Config{Secret: []byte("fuzz")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		conn := script{bytes.NewReader(in)}
		c := &session{server: server, conn: conn, wire: newWire(conn, func() {}), report: func(bocage.Depth, map[string]string) {},
			victim: addressOf(conn.LocalAddr()), source: addressOf(conn.RemoteAddr())}
		c.serveChannels(ctx, "root")
	})
}
