package host_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

func TestParseSSHConnection(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.9 50000 10.0.0.1 22":           "10.0.0.9:50000 10.0.0.1:22",
		"fe80::1%eth0 1 2001:db8::1 2222":      "[fe80::1]:1 [2001:db8::1]:2222",
		"::ffff:10.0.0.9 5 ::ffff:10.0.0.1 22": "10.0.0.9:5 10.0.0.1:22",
		"10.0.0.9 50000":                       "",
		"10.0.0.9 70000 10.0.0.1 22":           "",
		"who knows what this":                  "",
		"":                                     "",
	} {
		c, ok := host.ParseSSHConnection(text)
		if got := fmt.Sprint(c.Peer, " ", c.Local); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, ok, want)
		}
	}
}

func FuzzConnections(f *testing.F) {
	f.Add([]byte("  sl  local_address rem_address   st\n   0: 0100007F:0016 0200007F:C350 01 00000000:00000000\n"))
	f.Add([]byte("sl\n 0: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		established, _, err := host.ReadConnections(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, c := range established {
			if !c.Local.IsValid() || !c.Peer.IsValid() {
				t.Fatalf("an end that is none: %v", c)
			}
		}
	})
}

// Only what a login has written makes a connection a session.
func TestLoginsAmong(t *testing.T) {
	connection := func(text string) host.Connection {
		c, ok := host.ParseSSHConnection(text)
		if !ok {
			t.Fatal(text)
		}
		return c
	}
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/7/environ", "USER=root\x00SSH_CONNECTION=10.0.0.9 50000 10.0.0.1 2022\x00")
	write("proc/8/environ", "SSH_CONNECTION=nonsense\x00")
	write("run/systemd/sessions/1", "UID=1000\nUSER=ann\nREMOTE_HOST=10.0.0.8\nSTATE=active\n")
	write("run/systemd/sessions/2", "UID=1000\nUSER=bob\nREMOTE_HOST=10.0.0.7\nSTATE=closing\n")
	write("etc/ssh/sshd_config", "# Port 99\nPort 22\n")
	write("etc/ssh/sshd_config.d/more.conf", "port=2022\n")
	established := []host.Connection{
		connection("10.0.0.9 50000 10.0.0.1 2022"), // of a process
		connection("10.0.0.8 40000 10.0.0.1 22"),   // of logind
		connection("10.0.0.8 40001 10.0.0.1 443"),  // from there, and no ssh
		connection("10.0.0.7 40000 10.0.0.1 22"),   // has logged out
		connection("10.0.0.6 40000 10.0.0.1 22"),   // has never logged in
	}
	got := fmt.Sprint(host.ReadLogins(root).Among(established, []uint16{22, 443, 2022}))
	want := "[{{10.0.0.1:22 10.0.0.8:40000} ann} {{10.0.0.1:2022 10.0.0.9:50000} root}]"
	if got != want {
		t.Errorf("sessions %s, want %s", got, want)
	}
}

// A real sshd: a stranger who is connected is no session, one who logs in is.
func TestRootSessionsOfSSHD(t *testing.T) {
	hosttest.Root(t)
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal("sshd is not installed: scripts/setup test installs it")
	}
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	must(t, host.CreateVeth(host.Veth{Name: "eth0", Namespace: here, Peer: "eth0", PeerNamespace: there}))
	must(t, host.AddAddress(here, "eth0", netip.MustParsePrefix("10.97.0.1/24")))
	must(t, host.AddAddress(there, "eth0", netip.MustParsePrefix("10.97.0.2/24")))
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	run := func(name string, arguments ...string) {
		t.Helper()
		if out, err := exec.Command(name, arguments...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	key := filepath.Join(dir, "key")
	run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	must(t, err)
	authorised := filepath.Join(dir, "authorised")
	must(t, os.WriteFile(authorised, public, 0o600))
	if _, err := os.Stat("/run/sshd"); err != nil {
		must(t, os.Mkdir("/run/sshd", 0o755))
		t.Cleanup(func() { os.Remove("/run/sshd") })
	}
	daemon := exec.Command(sshd, "-D", "-e", "-f", "/dev/null", "-h", key, "-p", "22", "-o", "PidFile=none", "-o", "UsePAM=no",
		"-o", "StrictModes=no", "-o", "AuthorizedKeysFile="+authorised, "-o", "PermitRootLogin=yes")
	var said bytes.Buffer
	daemon.Stderr = &said
	must(t, host.Start(here, daemon))
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	sessions := func() string {
		var found []host.Session
		must(t, host.In(here, func() (err error) { found, err = host.Sessions(); return err }))
		return fmt.Sprint(found)
	}
	var stranger net.Conn
	hosttest.Await(t, "sshd to listen", func() bool {
		err := host.In(there, func() (err error) { stranger, err = net.Dial("tcp", "10.97.0.1:22"); return err })
		return err == nil
	})
	defer stranger.Close()
	if got := sessions(); got != "[]" {
		t.Errorf("a stranger is a session: %s", got)
	}
	client := exec.Command("ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "BatchMode=yes", "root@10.97.0.1", "sleep 60")
	client.Stderr = &said
	must(t, host.Start(there, client))
	t.Cleanup(func() { client.Process.Kill(); client.Wait() })
	hosttest.Await(t, "the login", func() bool { return strings.Contains(sessions(), "10.97.0.1:22 10.97.0.2:") })
	if t.Failed() {
		t.Log(said.String())
	}
	// Which link it comes by.
	must(t, host.In(here, func() error {
		link, err := host.LinkTowards(netip.MustParseAddr("10.97.0.2"))
		if err == nil && link.Name != "eth0" {
			t.Errorf("the client is behind %s", link.Name)
		}
		return err
	}))
	client.Process.Kill()
	client.Wait()
	hosttest.Await(t, "the end of the session", func() bool { return sessions() == "[]" })
}

// Behind a bridge, the port that the bridge has learned.
func TestRootLinkTowardsBridgePort(t *testing.T) {
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	must(t, host.CreateBridge(here, "br0"))
	must(t, host.AddAddress(here, "br0", netip.MustParsePrefix("10.97.1.1/24")))
	for _, name := range []string{"port0", "port1"} {
		must(t, host.CreateVeth(host.Veth{Name: name, Namespace: here, Peer: name, PeerNamespace: there}))
		must(t, host.SetMaster(here, name, "br0"))
	}
	must(t, host.AddAddress(there, "port1", netip.MustParsePrefix("10.97.1.2/24")))
	var listener net.Listener
	must(t, host.In(here, func() (err error) { listener, err = net.Listen("tcp", "10.97.1.1:0"); return err }))
	defer listener.Close()
	must(t, host.In(there, func() error {
		c, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	}))
	must(t, host.In(here, func() error {
		link, err := host.LinkTowards(netip.MustParseAddr("10.97.1.2"))
		if err == nil && link.Name != "port1" {
			t.Errorf("the client is behind %s, want port1", link.Name)
		}
		return err
	}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
