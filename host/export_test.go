package host

// LoadPass loads a small program, so that tests have something of bpf(2) to see.
var LoadPass = loadPass
