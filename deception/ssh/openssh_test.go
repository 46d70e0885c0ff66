package ssh

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// openSSH runs the real client against a decoy.
func openSSH(t testing.TB, s *served, options ...string) string {
	t.Helper()
	path, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("needs the OpenSSH client: apt-get install openssh-client")
	}
	arguments := []string{"-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-o", "IdentityFile=none", "-p", strconv.Itoa(s.address.Port)}
	arguments = append(arguments, options...)
	arguments = append(arguments, "root@127.0.0.1", "true")
	out, _ := exec.CommandContext(t.Context(), path, arguments...).CombinedOutput()
	return string(out)
}

// Every algorithm that a profile offers has to work with the client that
// everybody has: with a wrong one, the client does not get as far as being
// refused.
func TestOpenSSHSpeaksEveryAlgorithm(t *testing.T) {
	s := serve(t, Config{Banner: "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"})
	p := profileOf("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10")
	cases := map[string][]string{
		"KexAlgorithms":     p.kex,
		"HostKeyAlgorithms": p.hostKeys,
		"Ciphers":           p.ciphers,
	}
	for option, names := range cases {
		for _, name := range names {
			if name == strictServer {
				continue
			}
			t.Run(option+"="+name, func(t *testing.T) {
				refusedProperly(t, openSSH(t, s, "-o", option+"="+name))
			})
		}
	}
	for _, name := range p.macs {
		t.Run("MACs="+name, func(t *testing.T) {
			refusedProperly(t, openSSH(t, s, "-o", "Ciphers=aes128-ctr", "-o", "MACs="+name))
		})
	}
}

func refusedProperly(t *testing.T, out string) {
	t.Helper()
	if !strings.Contains(out, "root@127.0.0.1: Permission denied (publickey,password).") {
		t.Errorf("ssh said:\n%s", out)
	}
}
