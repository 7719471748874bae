package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/meshlab"
)

// report writes what the demo shows, one line for each claim.
type report struct {
	w        io.Writer
	yes, no  string // before a claim that holds, and one that does not
	dim, off string // of progress; empty where there is no colour

	claims, failed int

	mu sync.Mutex // held while a line is written
}

// titleWidth is that of the longest title, so that figures stand in a column.
const titleWidth = 20

func newReport(w io.Writer) *report {
	r := &report{w: w, yes: "ok  ", no: "FAIL"}
	if !isTerminal(w) {
		return r
	}
	if speaksUTF8() {
		r.yes, r.no = "✓", "✗"
	}
	if os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		r.yes, r.no = "\x1b[32m"+r.yes+"\x1b[0m", "\x1b[31m"+r.no+"\x1b[0m"
		r.dim, r.off = "\x1b[2m", "\x1b[0m"
	}
	return r
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// speaksUTF8 reads the locale as setlocale(3) does.
func speaksUTF8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(os.Getenv(name)); v != "" {
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}

// line writes a line as it is.
func (r *report) line(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Nobody is there to be told when standard output is closed.
	_, _ = fmt.Fprintf(r.w, format+"\n", args...)
}

// progress says what is being done.
func (r *report) progress(format string, args ...any) {
	r.line("%s  %s%s", r.dim, fmt.Sprintf(format, args...), r.off)
}

// claim writes the line of one claim, and what went wrong below it.
func (r *report) claim(title, measured string, err error) {
	r.claims++
	if err == nil {
		r.line("%s %-*s %s", r.yes, titleWidth, title, measured)
		return
	}
	r.failed++
	r.line("%s %-*s %s", r.no, titleWidth, title, strings.ReplaceAll(err.Error(), "\n", "\n     "))
}

// logs writes the last lines of programs.
func (r *report) logs(programs []*meshlab.Process) {
	for _, p := range programs {
		r.line("     the last of %s:", p.Name)
		r.line("     %s", strings.ReplaceAll(p.Tail(), "\n", "\n     "))
	}
}

// summary writes the last line; the error is errClaims unless all holds.
func (r *report) summary(all bool, took time.Duration) error {
	if all && r.failed == 0 {
		r.line("\n%d claims, all hold, %.1f s", r.claims, took.Seconds())
		return nil
	}
	r.line("\n%d of %d claims do not hold, %.1f s", r.failed, r.claims, took.Seconds())
	return errClaims
}
