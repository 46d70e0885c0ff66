package bocage

import "testing"

// Kubernetes' names of protocols, and IANA's, mean what Kubernetes says.
func TestCanonicalAppProtocol(t *testing.T) {
	for name, want := range map[string]AppProtocol{
		"http": SpeechHTTP, "https": SpeechTLS, "http2": SpeechHTTP2, "kubernetes.io/h2c": SpeechHTTP2, "kubernetes.io/ws": SpeechHTTP,
		"kubernetes.io/wss": SpeechTLS, "postgresql": SpeechPostgreSQL, "domain": SpeechDNS, "ms-wbt-server": SpeechRDP,
		"": SpeechUnknown, "gopher": SpeechNothing, "kubernetes.io/h3": SpeechNothing, "http+tls": SpeechNothing,
	} {
		if got := (Duties{Verify: name}).Expects(); got != want {
			t.Errorf("%q expects %s, want %s", name, got, want)
		}
		if known := want != SpeechNothing && want != SpeechUnknown; isAppProtocol(name) != known {
			t.Errorf("%q is known: %v", name, !known)
		}
	}
}
