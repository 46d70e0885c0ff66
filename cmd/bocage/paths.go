package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// paths is the value of a flag that names files. Like kubectl's, it takes several
// names with commas between them; but what exists under the whole name is one.
type paths struct{ list *[]string }

func (p paths) Set(text string) error {
	if _, err := os.Lstat(text); err == nil || !strings.Contains(text, ",") {
		*p.list = append(*p.list, text)
		return nil
	}
	names, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return fmt.Errorf("%q is neither a file nor names of files with commas between them: %w", text, err)
	}
	*p.list = append(*p.list, names...)
	return nil
}

func (p paths) String() string {
	if p.list == nil || len(*p.list) == 0 {
		return ""
	}
	return "[" + strings.Join(*p.list, ",") + "]"
}

func (paths) Type() string { return "strings" }

// pathsFlag adds a flag that names files and may be repeated; letter may be empty.
func pathsFlag(cmd *cobra.Command, list *[]string, name, letter, usage string) {
	cmd.Flags().VarP(paths{list}, name, letter, usage)
}
