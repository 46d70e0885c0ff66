package compile

// CompileSpelling is Compile with another bound on how large classes may be whose
// refusals are spelled out pair by pair.
func CompileSpelling(in Input, most int) Output { return compile(in, most) }
