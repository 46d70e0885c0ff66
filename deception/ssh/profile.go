package ssh

import (
	"regexp"
	"strconv"
	"strings"
)

// profile is what a release of OpenSSH's server, as Debian and Ubuntu build it,
// offers and says. Orders matter: they are what fingerprints (HASSHServer) see.
type profile struct {
	kex, hostKeys, ciphers, macs, compressions []string
	// signatures is the value of server-sig-algs (RFC 8308); hostbound and ping
	// tell which extensions come with it.
	signatures      string
	hostbound, ping bool
	methods         string // of authentication, that can continue
}

// version of OpenSSH, as major*100 + minor.
type version int

var versionPattern = regexp.MustCompile(`^SSH-[0-9.]+-OpenSSH_([0-9]+)\.([0-9]+)`)

// claimedVersion reads the release that a banner claims. What claims no OpenSSH
// is treated as Debian 12's.
func claimedVersion(banner string) version {
	m := versionPattern.FindStringSubmatch(banner)
	if m == nil {
		return 902
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major > 99 || minor > 99 {
		return 902
	}
	return version(major*100 + minor)
}

// profileOf gives the face that belongs to a banner. Sources: the release notes
// of OpenSSH 7.4 to 10.0 and, for 9.2p1, a real server's KEXINIT.
func profileOf(banner string) profile {
	v := claimedVersion(banner)
	ecdh := []string{"curve25519-sha256", "curve25519-sha256@libssh.org",
		"ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"}
	groups := []string{"diffie-hellman-group-exchange-sha256",
		"diffie-hellman-group16-sha512", "diffie-hellman-group18-sha512", "diffie-hellman-group14-sha256"}
	sntrup := []string{"sntrup761x25519-sha512@openssh.com"}
	if v >= 909 || standardSntrup(banner) {
		sntrup = []string{"sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com"}
	}
	mlkem := []string{"mlkem768x25519-sha256"}

	p := profile{
		ciphers: []string{"chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr",
			"aes128-gcm@openssh.com", "aes256-gcm@openssh.com"},
		macs: []string{"umac-64-etm@openssh.com", "umac-128-etm@openssh.com",
			"hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha1-etm@openssh.com",
			"umac-64@openssh.com", "umac-128@openssh.com", "hmac-sha2-256", "hmac-sha2-512", "hmac-sha1"},
		compressions: []string{"none", "zlib@openssh.com"},
		hostKeys:     []string{"rsa-sha2-512", "rsa-sha2-256", "ecdsa-sha2-nistp256", "ssh-ed25519"},
		signatures: "ssh-ed25519,sk-ssh-ed25519@openssh.com," +
			"ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521," +
			"sk-ecdsa-sha2-nistp256@openssh.com,webauthn-sk-ecdsa-sha2-nistp256@openssh.com,ssh-dss,ssh-rsa,rsa-sha2-256,rsa-sha2-512",
		hostbound: v >= 809,
		ping:      v >= 905,
		methods:   "publickey,password",
	}
	switch {
	case v >= 1000:
		p.kex = join(mlkem, sntrup, ecdh)
	case v >= 909:
		p.kex = join(sntrup, mlkem, ecdh, groups)
	case v >= 900:
		p.kex = join(sntrup, ecdh, groups)
	case v >= 809:
		p.kex = join(ecdh, sntrup, groups)
	default:
		p.kex = join(ecdh, groups)
	}
	if v < 808 {
		p.hostKeys = []string{"rsa-sha2-512", "rsa-sha2-256", "ssh-rsa", "ecdsa-sha2-nistp256", "ssh-ed25519"}
	}
	switch {
	case v < 802:
		p.signatures = "ssh-ed25519,ssh-rsa,rsa-sha2-256,rsa-sha2-512,ssh-dss,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521"
	case v < 804:
		p.signatures = "ssh-ed25519,sk-ssh-ed25519@openssh.com,ssh-rsa,rsa-sha2-256,rsa-sha2-512,ssh-dss," +
			"ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,sk-ecdsa-sha2-nistp256@openssh.com"
	case v < 808:
		p.signatures = "ssh-ed25519,sk-ssh-ed25519@openssh.com,ssh-rsa,rsa-sha2-256,rsa-sha2-512,ssh-dss," +
			"ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,sk-ecdsa-sha2-nistp256@openssh.com,webauthn-sk-ecdsa-sha2-nistp256@openssh.com"
	case v >= 1000: // DSA is gone
		p.signatures = strings.Replace(p.signatures, "ssh-dss,", "", 1)
	}
	if v >= 906 || backportedStrict(banner) {
		p.kex = append(p.kex, strictServer)
	}
	return p
}

// Markers of the Terrapin countermeasure among key exchange methods
// (OpenSSH's PROTOCOL, section 1.10), and of RFC 8308.
const (
	strictServer = "kex-strict-s-v00@openssh.com"
	strictClient = "kex-strict-c-v00@openssh.com"
	extInfo      = "ext-info-c"
)

// backports of distributions: the first package revision, by the banner's
// prefix, that has the Terrapin countermeasure (December 2023).
var backports = []struct {
	prefix   string
	revision int
}{
	{"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u", 2},
	{"SSH-2.0-OpenSSH_8.4p1 Debian-5+deb11u", 3},
	{"SSH-2.0-OpenSSH_8.9p1 Ubuntu-3ubuntu0.", 6},
	{"SSH-2.0-OpenSSH_8.2p1 Ubuntu-4ubuntu0.", 11},
	{"SSH-2.0-OpenSSH_9.3p1 Ubuntu-1ubuntu3.", 2},
}

func backportedStrict(banner string) bool {
	for _, b := range backports {
		if n, ok := revisionAfter(banner, b.prefix); ok {
			return n >= b.revision
		}
	}
	return false
}

// standardSntrup says whether the banner is of a Debian 12 recent enough to name
// the exchange without OpenSSH's suffix too (changelog of revision 4).
func standardSntrup(banner string) bool {
	n, ok := revisionAfter(banner, "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u")
	return ok && n >= 4
}

func revisionAfter(banner, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(banner, prefix)
	if !ok {
		return 0, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	n, err := strconv.Atoi(rest)
	return n, err == nil
}

func join(lists ...[]string) []string {
	var out []string
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}
