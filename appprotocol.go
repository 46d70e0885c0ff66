package bocage

import (
	"fmt"
	"slices"
	"strings"
)

// AppProtocol is what a flow speaks, as an enforcement point hears it in the first
// bytes. The numbers are part of the contract with the eBPF programs: never reused.
type AppProtocol uint8

// Application protocols. Encrypted forms are TLS, or QUIC, whatever they carry;
// what begins in the open and goes on encrypted, as PostgreSQL's request for TLS
// does, is what it began as.
const (
	SpeechUnknown    AppProtocol = 0 // nothing was heard, or not enough
	SpeechTLS        AppProtocol = 1 // over UDP: DTLS
	SpeechHTTP       AppProtocol = 2 // HTTP/1.0 and 1.1
	SpeechHTTP2      AppProtocol = 3 // without TLS, with prior knowledge
	SpeechSSH        AppProtocol = 4
	SpeechPostgreSQL AppProtocol = 5
	SpeechMySQL      AppProtocol = 6
	SpeechMongoDB    AppProtocol = 7
	SpeechKafka      AppProtocol = 8
	SpeechMQTT       AppProtocol = 9
	SpeechAMQP       AppProtocol = 10
	SpeechLDAP       AppProtocol = 11
	SpeechSMB        AppProtocol = 12
	SpeechRDP        AppProtocol = 13
	SpeechDNS        AppProtocol = 14
	SpeechNTP        AppProtocol = 15
	SpeechQUIC       AppProtocol = 16
	SpeechMemcached  AppProtocol = 17
	SpeechRedis      AppProtocol = 18

	SpeechNothing AppProtocol = 254 // expected only: two protocols at once, which nobody can speak
	SpeechOther   AppProtocol = 255 // heard only: none of the above
)

var appProtocolNames = []string{"", "tls", "http", "http2", "ssh", "postgresql", "mysql", "mongodb", "kafka", "mqtt", "amqp",
	"ldap", "smb", "rdp", "dns", "ntp", "quic", "memcached", "redis"}

// AppProtocolNames lists the protocols that Duties.Verify can name, sorted.
func AppProtocolNames() []string {
	return slices.Sorted(slices.Values(appProtocolNames[1:]))
}

// CanonicalAppProtocol is the name here of what the appProtocol of a Kubernetes port
// names: by IANA's service names and by Kubernetes' own. What is encrypted from the
// first byte is tls, whatever it carries: also HTTP/2, of which only the form in the
// open (h2c) is http2. A name that is known to nobody is returned as it is.
func CanonicalAppProtocol(name string) string {
	switch name {
	case "kubernetes.io/h2c":
		return "http2"
	case "kubernetes.io/ws":
		return "http"
	case "kubernetes.io/wss", "https", "ldaps", "amqps", "secure-mqtt", "domain-s":
		return "tls"
	case "domain":
		return "dns"
	case "microsoft-ds", "netbios-ssn":
		return "smb"
	case "ms-wbt-server":
		return "rdp"
	case "memcache":
		return "memcached"
	}
	return name
}

// isAppProtocol reports whether a contract can name it.
func isAppProtocol(name string) bool {
	return name != "" && slices.Contains(appProtocolNames, CanonicalAppProtocol(name))
}

func (p AppProtocol) String() string {
	switch {
	case int(p) < len(appProtocolNames):
		return appProtocolNames[p]
	case p == SpeechNothing:
		return "nothing"
	case p == SpeechOther:
		return "other"
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// MarshalText writes the protocol's name; empty if it is not known.
func (p AppProtocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a protocol's name.
func (p *AppProtocol) UnmarshalText(text []byte) error {
	switch name := string(text); {
	case name == SpeechOther.String():
		*p = SpeechOther
	case name == SpeechNothing.String():
		*p = SpeechNothing
	default:
		i := slices.Index(appProtocolNames, name)
		if i < 0 {
			return fmt.Errorf("application protocol %q is not one of %s", text, strings.Join(AppProtocolNames(), ", "))
		}
		*p = AppProtocol(i)
	}
	return nil
}

// Expects says what a flow with these duties must speak. Several protocols, joined
// by "+", contradict each other: the first bytes of a flow are of one at most.
func (d Duties) Expects() AppProtocol {
	if d.Verify == "" {
		return SpeechUnknown
	}
	if i := slices.Index(appProtocolNames, CanonicalAppProtocol(d.Verify)); i > 0 {
		return AppProtocol(i)
	}
	return SpeechNothing
}

// Carriers says over which transport protocols it is spoken.
func (p AppProtocol) Carriers() []Protocol {
	switch p {
	case SpeechNTP, SpeechQUIC:
		return []Protocol{ProtocolUDP}
	case SpeechTLS, SpeechDNS, SpeechLDAP, SpeechMemcached:
		return []Protocol{ProtocolTCP, ProtocolUDP}
	case SpeechUnknown, SpeechNothing, SpeechOther:
		return nil
	}
	return []Protocol{ProtocolTCP}
}
