package compile

// CompileSpelling is Compile with another bound on how large sites may be whose
// refusals are spelled out pair by pair.
func CompileSpelling(in Input, most int) Output { return NewCompilerSpelling(most).Compile(in) }

// NewCompilerSpelling is NewCompiler with that bound.
func NewCompilerSpelling(most int) *Compiler { return &Compiler{spelled: most} }
