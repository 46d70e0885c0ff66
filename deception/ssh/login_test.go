package ssh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	xssh "golang.org/x/crypto/ssh"

	"bocage.dev/bocage"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// enter guesses as long as it takes and gives the client that got in.
func (s *served) enter(t testing.TB, user string, change func(*xssh.ClientConfig)) *xssh.Client {
	t.Helper()
	for range leastTries + spreadTries {
		config := &xssh.ClientConfig{User: user, HostKeyCallback: xssh.InsecureIgnoreHostKey(),
			Auth: []xssh.AuthMethod{xssh.Password("letmein")}}
		if change != nil {
			change(config)
		}
		client, err := xssh.Dial("tcp", s.address.String(), config)
		if err == nil {
			t.Cleanup(func() { client.Close() })
			return client
		}
		if !strings.Contains(err.Error(), "unable to authenticate") {
			t.Fatal(err)
		}
	}
	t.Fatal("the doorman never nods")
	return nil
}

func TestDoorman(t *testing.T) {
	d := newDoorman([]byte("secret"))
	seen := map[int]bool{}
	for i := range 200 {
		source := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		n := 1
		for ; !d.admits(source, "root", "guess"+strconv.Itoa(n)); n++ {
			if n > 100 {
				t.Fatal("never admitted")
			}
		}
		if n < leastTries || n >= leastTries+spreadTries {
			t.Errorf("admitted at try %d", n)
		}
		seen[n] = true
		if !d.admits(source, "root", "guess"+strconv.Itoa(n)) {
			t.Error("the right password is right only once")
		}
		for _, wrong := range [][2]string{{"root", "other"}, {"admin", "guess" + strconv.Itoa(n)}, {"root", ""}} {
			if d.admits(source, wrong[0], wrong[1]) {
				t.Errorf("%q is right too", wrong)
			}
		}
	}
	if len(seen) < 2 {
		t.Error("every source is admitted at the same try")
	}
	for _, user := range []string{"", "-x", "Root", "a b", "root\x00", strings.Repeat("a", 33), "1x", "../x"} {
		for range 20 {
			if d.admits(loopback, user, "x") {
				t.Errorf("user %q is admitted", user)
			}
		}
	}
	for i := range 3 * maxSources {
		d.admits(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), "root", "x")
	}
	if len(d.sources) != maxSources || d.recent.Len() != maxSources {
		t.Errorf("%d sources are remembered", len(d.sources))
	}
}

// Who gets in meets a shell, and every command is told.
func TestCommandsAreRecorded(t *testing.T) {
	s := serve(t, Config{})
	client := s.enter(t, "root", nil)
	run := func(command, input string) string {
		t.Helper()
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		session.Stdin = strings.NewReader(input)
		out, err := session.CombinedOutput(command)
		if exit, ok := errors.AsType[*xssh.ExitError](err); ok {
			out = fmt.Appendf(out, "exit %d", exit.ExitStatus())
		} else if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return string(out)
	}
	for _, c := range []struct{ command, input, want string }{
		{"whoami", "", "root\n"},
		{"cat > /tmp/x; wc -c /tmp/x", "payload", "7 /tmp/x\n"},
		{"nonsense", "", "-bash: nonsense: command not found\nexit 127"},
		{"exit 5", "", "exit 5"},
		{"while read a; do echo got $a; done", "1\n2\n", "got 1\ngot 2\n"},
		{"seq 1 20000 | tail -n 1", "", "20000\n"},
		{"if true", "", "bash: -c: line 2: syntax error: unexpected end of file\nexit 2"},
		{"seq 1 20000", "", ""}, // more than a window: compared by its end
	} {
		got := run(c.command, c.input)
		if c.want == "" {
			if !strings.HasSuffix(got, "\n19999\n20000\n") {
				t.Errorf("%s ends with %q", c.command, got[max(0, len(got)-20):])
			}
			continue
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
	var commands []string
	accepted := false
	for _, e := range s.reported() {
		if e.depth == bocage.DepthCommand {
			commands = append(commands, e.detail["command"])
		}
		accepted = accepted || e.depth == bocage.DepthLogin && e.detail["outcome"] == "accepted" && e.detail["password"] == "letmein"
	}
	if len(commands) != 8 || commands[0] != "whoami" || !accepted {
		t.Errorf("recorded were %q, accepted %t", commands, accepted)
	}
}

// A terminal behaves as one: echo, editing, history, prompts that go on.
func TestTerminal(t *testing.T) {
	s := serve(t, Config{})
	client := s.enter(t, "root", nil)
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := session.RequestPty("xterm", 24, 80, xssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	session.Stdin = strings.NewReader("whoamx\x7fi\r" + "for i in 1 2\rdo echo n$i\rdone\r" + "junk\x15id -u\r" + "\x1b[A\x1b[A\x1b[B\r" + "half\x03" + "cat\rinto cat\r\x04" + "exit 4\r")
	var out bytes.Buffer
	session.Stdout = &out
	if err := session.Shell(); err != nil {
		t.Fatal(err)
	}
	err = session.Wait()
	exit, ok := errors.AsType[*xssh.ExitError](err)
	if !ok || exit.ExitStatus() != 4 {
		t.Errorf("ended with %v", err)
	}
	text := out.String()
	for _, want := range []string{
		"ABSOLUTELY NO WARRANTY", "Last login: ", "root@ip-127-0-0-1:~# whoamx\b \bi\r\nroot\r\n",
		"> do echo n$i\r\n> done\r\nn1\r\nn2\r\n", "id -u\r\n0\r\n", "half^C\r\n", "into cat\r\ninto cat\r\n", "logout\r\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the terminal did not show %q in\n%q", want, text)
		}
	}
}

// Tunnels and subsystems are told of and lead nowhere.
func TestTunnelsLeadNowhere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := serve(t, Config{})
	client := s.enter(t, "root", nil)
	if conn, err := client.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("a tunnel was opened")
	}
	if l, err := client.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("a port was forwarded")
	}
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.RequestSubsystem("sftp"); err == nil {
		t.Error("sftp was begun")
	}
	told := map[string]string{}
	for _, e := range s.reported() {
		if e.depth == bocage.DepthCommand {
			maps.Copy(told, e.detail)
		}
	}
	if told["tunnel"] != listener.Addr().String() || told["subsystem"] != "sftp" || told["listen"] != "127.0.0.1" {
		t.Errorf("told were %v", told)
	}
}

// Keys change when the client wants, in the middle of whatever goes on.
func TestRekeying(t *testing.T) {
	s := serve(t, Config{})
	client := s.enter(t, "root", func(c *xssh.ClientConfig) { c.RekeyThreshold = 16 << 10 })
	for range 5 {
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, err := session.Output("seq 1 20000")
		if err != nil || !bytes.HasSuffix(out, []byte("\n20000\n")) || len(out) != 108894 {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
	}
}

// A client may have ten sessions, no more, and one that does not read harms
// nobody but itself.
func TestChannelsAreBounded(t *testing.T) {
	s := serve(t, Config{})
	client := s.enter(t, "root", nil)
	for range maxChannels {
		if _, err := client.NewSession(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.NewSession(); err == nil {
		t.Error("an eleventh session was opened")
	}
	client.Close()

	client = s.enter(t, "root", nil)
	stuck, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := stuck.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stuck.Start("yes"); err != nil {
		t.Fatal(err)
	}
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := session.Output("whoami"); err != nil || string(out) != "root\n" {
		t.Errorf("beside one that does not read: %q, %v", out, err)
	}
	if n, _ := io.Copy(io.Discard, pipe); n > 300<<10 {
		t.Errorf("yes wrote %d bytes", n)
	}
}

// The real client gets in with the password that the doorman took, rekeys,
// runs what it is told, and believes our host keys.
func TestOpenSSHGetsIn(t *testing.T) {
	path, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("needs the OpenSSH client: apt-get install openssh-client")
	}
	s := serve(t, Config{})
	s.enter(t, "root", nil)
	dir := t.TempDir()
	ask := filepath.Join(dir, "ask")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho letmein\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var talk bytes.Buffer
	for range 2 { // the second time it knows us, and asks for proof of our other keys
		var out bytes.Buffer
		cmd := exec.CommandContext(t.Context(), path, "-v", "-F", "none", "-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile="+dir+"/known",
			"-o", "UpdateHostKeys=yes", "-o", "IdentityFile=none", "-o", "RekeyLimit=16K", "-p", strconv.Itoa(s.address.Port), "root@127.0.0.1", "uname -a; seq 1 20000")
		cmd.Env = append(os.Environ(), "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=none")
		cmd.Stdout, cmd.Stderr = &out, &talk
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s", err, talk.String())
		}
		if !strings.HasPrefix(out.String(), "Linux ip-127-0-0-1 6.1.0-37-amd64 ") || !strings.HasSuffix(out.String(), "\n20000\n") {
			t.Errorf("ssh got %d bytes: %.200q", out.Len(), out.String())
		}
	}
	known, err := os.ReadFile(dir + "/known")
	if err != nil || strings.Count(string(known), "\n") != 3 {
		t.Errorf("ssh learned %q (%v)\n%s", known, err, talk.String())
	}
}

// The sixth refusal ends the connection in sshd's words.
func TestTooManyFailures(t *testing.T) {
	s := serve(t, Config{})
	tries := 0
	_, err := xssh.Dial("tcp", s.address.String(), &xssh.ClientConfig{User: "Not A User", HostKeyCallback: xssh.InsecureIgnoreHostKey(),
		Auth: []xssh.AuthMethod{xssh.RetryableAuthMethod(xssh.PasswordCallback(func() (string, error) { tries++; return "x", nil }), 20)}})
	if err == nil || !strings.Contains(err.Error(), "Too many authentication failures") || tries != maxAuthTries {
		t.Errorf("after %d tries: %v", tries, err)
	}
}

func BenchmarkHandshake(b *testing.B) {
	for _, kex := range []string{"curve25519-sha256", "ecdh-sha2-nistp256", "diffie-hellman-group14-sha256", "mlkem768x25519-sha256"} {
		b.Run(kex, func(b *testing.B) {
			s := serve(b, Config{Banner: "SSH-2.0-OpenSSH_9.9"})
			for b.Loop() {
				config := &xssh.ClientConfig{HostKeyCallback: xssh.InsecureIgnoreHostKey(), HostKeyAlgorithms: []string{xssh.KeyAlgoED25519}}
				config.KeyExchanges = []string{kex}
				if _, err := xssh.Dial("tcp", s.address.String(), config); !strings.Contains(err.Error(), "unable to authenticate") {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSntrup(b *testing.B) {
	public := make([]byte, sntrupPublicSize)
	for b.Loop() {
		sntrupEncapsulate(public)
	}
}
