package bocage

// Limits of a Greeting. A server's name is a DNS name; of the rest, what is longer
// is cut.
const (
	LongestServerName = 253
	LongestALPN       = 64
	MostALPN          = 16
)

// Greeting is what a TLS client sent in clear text at the beginning: the server name that it
// asked for (SNI) and the protocols that it offered (ALPN). It is the client's claim and
// proves nothing: a server may ignore it.
type Greeting struct {
	// Flow says whose greeting it is, with the counters of that moment. Its kind is
	// EventGreeting.
	Flow FlowEvent `json:"flow"`
	Greeted
}

// Greeted is what was said in a Greeting.
type Greeted struct {
	// ServerName is the server name that the client asked for (SNI), in lower case; empty
	// if there was none. What is not printable ASCII is escaped.
	ServerName string `json:"serverName,omitempty"`
	// ALPN lists the protocols that it offered, in its order of preference.
	ALPN []string `json:"alpn,omitempty"`
	// Hidden says that the real server name is encrypted (Encrypted Client Hello), or that
	// the client pretends so: ServerName is only the server that can decrypt it.
	Hidden bool `json:"hidden,omitempty"`
	// Ambiguous says that the client sent the same bytes of the stream twice, with different
	// content. Which of them the server used is not known, so no name is reported. If one
	// was reported before the second copy came, this record follows and revokes it. The
	// first copy need not have been TLS: a client may pretend to speak something else first.
	Ambiguous bool `json:"ambiguous,omitempty"`
}
