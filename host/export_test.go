package host

// LoadPass loads a small program, so that tests have something of bpf(2) to see.
var LoadPass = loadPass

// ReadConnections reads a file in the form of /proc/net/tcp.
var ReadConnections = readConnections

// LoadReturn loads a program of a kind that only returns a number.
var LoadReturn = loadReturn
