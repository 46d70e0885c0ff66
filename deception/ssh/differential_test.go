package ssh

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// record rewrites the golden file from a real sshd: give its address. The
// file in testdata is of Debian's 1:9.2p1-2+deb12u10 with its standard options.
var record = flag.String("record", "", "address of a real sshd to record testdata from")

const golden = "testdata/openssh-9.2p1-deb12u10.txt"

// probe is one way to tell a decoy from what it claims to be: bytes to send
// after the server's identification.
type probe struct {
	name string
	send [][]byte
}

func probes() []probe {
	lines := func(s ...string) [][]byte {
		var out [][]byte
		for _, line := range s {
			out = append(out, []byte(line))
		}
		return out
	}
	const id = "SSH-2.0-OpenSSH_9.2p1\r\n"
	after := func(packets ...[]byte) [][]byte { return append(lines(id), packets...) }
	raw := func(length uint32, rest ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, length), rest...)
	}
	kexinit := func(kex string) []byte {
		message := append([]byte{msgKexInit}, make([]byte, 16)...)
		for _, list := range []string{kex, "ssh-ed25519", "aes128-ctr", "aes128-ctr", "hmac-sha2-256", "hmac-sha2-256", "none", "none", "", ""} {
			message = append(message, encodeString([]byte(list))...)
		}
		return padded(append(message, 0, 0, 0, 0, 0))
	}
	good := kexinit("curve25519-sha256")
	strict := kexinit("curve25519-sha256,kex-strict-c-v00@openssh.com")
	return []probe{
		{"a version that is none", lines("SSH-1111-x\r\n")},
		{"version 1.5", lines("SSH-1.5-x\r\n")},
		{"version 1.99", lines("SSH-1.99-x\r\n")},
		{"version 3.0", lines("SSH-3.0-x\r\n")},
		{"version with blanks", lines("SSH- 2. 0-x\r\n")},
		{"negative version", lines("SSH--2.0-x\r\n")},
		{"no software", lines("SSH-2.0-\r\n")},
		{"no last dash", lines("SSH-2.0\r\n")},
		{"lower case", lines("ssh-2.0-x\r\n")},
		{"a blank line", lines("\r\n")},
		{"only LF", lines("\n")},
		{"a blank line, then an identification", lines("\r\n" + id)},
		{"a line, then an identification", lines("hello\r\n" + id)},
		{"an HTTP request", lines("GET / HTTP/1.0\r\n\r\n")},
		{"a TLS ClientHello", lines("\x16\x03\x01\x00\x05hello\n")},
		{"NUL in the identification", lines("SSH-2.0-a\x00b\r\n")},
		{"CR in the identification", lines("SSH-2.0-a\rb\r\n")},
		{"identification ended by LF", lines("SSH-2.0-foo\n")},
		{"identification of 300", lines("SSH-2.0-" + strings.Repeat("a", 300) + "\r\n")},
		{"identification of 8192", lines("SSH-2.0-" + strings.Repeat("a", 8184) + "\r\n")},
		{"identification of 8193", lines("SSH-2.0-" + strings.Repeat("a", 8185) + "\r\n")},
		{"9000 bytes without a line's end", lines(strings.Repeat("A", 9000))},
		{"a scanner that compat.c knows", lines("SSH-2.0-Probe-x\r\n")},
		{"another scanner that compat.c knows", lines("SSH-2.0-SSH_Version_Mapper_1\r\n")},
		{"identification only", lines(id)},
		{"packet length 0", after(raw(0, make([]byte, 12)...))},
		{"packet length 2^31-1", after(raw(1<<31-1, make([]byte, 12)...))},
		{"packet length of no block", after(raw(13, make([]byte, 17)...))},
		{"padding of 2", after(raw(12, append([]byte{2}, make([]byte, 11)...)...))},
		{"padding longer than the packet", after(raw(12, append([]byte{12}, make([]byte, 11)...)...))},
		{"message 0", after(padded([]byte{0}))},
		{"message 50 before keys", after(padded([]byte{50}))},
		{"message 192", after(padded([]byte{192}))},
		{"message 255", after(padded([]byte{255}))},
		{"service request before keys", after(padded([]byte("\x05\x00\x00\x00\x0cssh-userauth")))},
		{"ignore", after(padded([]byte{2, 0, 0, 0, 0}))},
		{"debug", after(padded(append([]byte{4}, make([]byte, 9)...)))},
		{"unimplemented", after(padded([]byte{3, 0, 0, 0, 0}))},
		{"disconnect", after(padded(append([]byte{1, 0, 0, 0, 11}, make([]byte, 8)...)))},
		{"new keys at once", after(padded([]byte{msgNewKeys}))},
		{"KEXINIT cut short", after(padded(append([]byte{msgKexInit}, make([]byte, 16)...)))},
		{"KEXINIT without a match", after(kexinit("foo"))},
		{"KEXINIT twice", after(good, good)},
		{"KEXINIT, then new keys", after(good, padded([]byte{msgNewKeys}))},
		{"KEXINIT, then message 31", after(good, padded([]byte{31}))},
		{"KEXINIT, then message 50", after(good, padded([]byte{50}))},
		{"KEXINIT, then message 192", after(good, padded([]byte{192}))},
		{"KEXINIT, then ignore", after(good, padded([]byte{2, 0, 0, 0, 0}))},
		{"public value of zeros", after(good, padded(append([]byte{30}, encodeString(make([]byte, 32))...)))},
		{"public value of 31 bytes", after(good, padded(append([]byte{30}, encodeString(make([]byte, 31))...)))},
		{"public value and more", after(good, padded(append(append([]byte{30}, encodeString(bytes.Repeat([]byte{9}, 32))...), 'x')))},
		{"strict, then ignore", after(strict, padded([]byte{2, 0, 0, 0, 0}))},
		{"strict, after ignore", after(padded([]byte{2, 0, 0, 0, 0}), strict)},
		{"strict, then KEXINIT", after(strict, strict)},
		{"strict, then new keys", after(strict, padded([]byte{msgNewKeys}))},
		{"strict, then service request", after(strict, padded([]byte("\x05\x00\x00\x00\x0cssh-userauth")))},
	}
}

// padded is a packet without protection.
func padded(message []byte) []byte {
	padding := 8 - (5+len(message))%8
	if padding < 4 {
		padding += 8
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(1+len(message)+padding))
	out = append(append(out, byte(padding)), message...)
	return append(out, make([]byte, padding)...)
}

// answer is what a server does about a probe: what it says after its
// identification, and whether it ends the connection. A server that is to end
// it is given long, one that is not only a moment: the test can be too kind
// but not unjust.
func answer(t *testing.T, address string, p probe, ends bool) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	banner := make([]byte, 0, 256)
	for !bytes.HasSuffix(banner, []byte("\n")) {
		one := make([]byte, 1)
		if _, err := conn.Read(one); err != nil {
			t.Fatal(err)
		}
		banner = append(banner, one[0])
	}
	for _, data := range p.send {
		if _, err := conn.Write(data); err != nil {
			break // it may have seen enough
		}
	}
	if !ends {
		conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	}
	said, err := io.ReadAll(conn)
	ending := "ends"
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		ending = "stays"
	case err != nil && !errors.Is(err, syscall.ECONNRESET):
		t.Fatal(err)
	}
	return describe(said) + ending
}

// describe tells messages one by one: a KEXINIT by the SHA-256 of what follows
// its cookie. The sentence of a refused identification may lose its end to a
// reset.
func describe(said []byte) string {
	var b strings.Builder
	for len(said) > 0 {
		length := 0
		if len(said) > 5 {
			length = int(binary.BigEndian.Uint32(said))
		}
		if length < 5 || length+4 > len(said) || int(said[4]) >= length {
			fmt.Fprintf(&b, "%q, ", strings.TrimRight(string(said), "\r\n"))
			break
		}
		packet := said[4 : 4+length]
		said = said[4+length:]
		message := packet[1 : length-int(packet[0])]
		if message[0] == msgKexInit && len(message) > 17 {
			fmt.Fprintf(&b, "KEXINIT %.8x padded by %d, ", sha256.Sum256(message[17:]), packet[0])
			continue
		}
		fmt.Fprintf(&b, "%q padded by %d, ", message, packet[0])
	}
	return b.String()
}

// The decoy answers every probe as the real sshd does, byte for byte.
func TestAnswersAsOpenSSH(t *testing.T) {
	if *record != "" {
		var b strings.Builder
		for _, p := range probes() {
			said := answer(t, *record, p, false)
			fmt.Fprintf(&b, "%s: %s\n", p.name, said)
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, said, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		want[name] = said
	}
	s := serve(t, Config{Banner: "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"})
	for _, p := range probes() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			if got := answer(t, s.address.String(), p, strings.HasSuffix(want[p.name], "ends")); got != want[p.name] {
				t.Errorf("decoy: %s\nsshd:  %s", got, want[p.name])
			}
		})
	}
}
