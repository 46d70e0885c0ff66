package bocage

// Limits of a Greeting. A server's name is a DNS name; of the rest, what is longer
// is cut.
const (
	LongestServerName = 253
	LongestALPN       = 64
	MostALPN          = 16
)

// Greeting is what a client of TLS said before anything was encrypted: whom it asked
// for and what it offered to speak inside. It is what the client claims, and nobody's
// proof: a server need not heed it.
type Greeting struct {
	// Flow says whose greeting it is, with the counters of that moment. Its kind is
	// EventGreeting.
	Flow FlowEvent `json:"flow"`
	Greeted
}

// Greeted is what was said in a Greeting.
type Greeted struct {
	// ServerName is whom the client asked for (SNI), in lower case; empty if it did not
	// say. What is no printable ASCII is escaped.
	ServerName string `json:"serverName,omitempty"`
	// ALPN lists the protocols that it offered to speak inside, best first.
	ALPN []string `json:"alpn,omitempty"`
	// Hidden says that whom it truly asked for is encrypted, or that it pretends so
	// (Encrypted Client Hello): ServerName is only who may decrypt it.
	Hidden bool `json:"hidden,omitempty"`
	// Ambiguous says that the client sent the same bytes twice and otherwise, as nobody
	// does who has nothing to hide: which the server took is not known, and no name is told.
	// Where one was told before the other copy came, this comes after it, and unsays it. It
	// need not have been TLS: who first pretends to speak something else may hide a name.
	Ambiguous bool `json:"ambiguous,omitempty"`
}
