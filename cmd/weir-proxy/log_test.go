package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestTheMeshSetsLevelAndFormatOfALogInUse(t *testing.T) {
	var out bytes.Buffer
	s := newLogSwitch(zapcore.AddSync(&out), zapcore.InfoLevel, "json")
	log := s.logger().Named("part").With(zap.String("service", "users"))
	step := func(level, format, want string) {
		t.Helper()
		s.set(level, format)
		out.Reset()
		log.Debug("quiet", zap.Int("n", 1))
		log.Info("plain", zap.Int("n", 1))
		// Times differ.
		var got []string
		for line := range strings.Lines(out.String()) {
			if i := strings.Index(line, `,"ts":`); i > 0 {
				_, rest, _ := strings.Cut(line[i+1:], ",")
				line = line[:i+1] + rest
			} else {
				_, line, _ = strings.Cut(line, "\t")
			}
			got = append(got, strings.TrimSpace(line))
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("%s, %s: got\n%s\nwant\n%s", level, format, strings.Join(got, "\n"), want)
		}
	}
	const plain = `{"level":"info","logger":"part","msg":"plain","service":"users","n":1}`
	step("", "", plain)
	step("debug", "", `{"level":"debug","logger":"part","msg":"quiet","service":"users","n":1}`+"\n"+plain)
	step("info", "console", "INFO\tpart\tplain\t"+`{"service": "users", "n": 1}`)
	step("error", "json", "")
	step("loud", "yaml", "") // a newer control plane's words: what is, stays
	step("warn", "", "")
	s.keepLevel, s.keepForm = true, true
	step("debug", "console", "")
}

func TestAFlagWinsOverTheMesh(t *testing.T) {
	for _, c := range []struct {
		args                []string
		level, form, output bool // left to the mesh
	}{
		{nil, true, true, true},
		{[]string{"--log-level", "info"}, false, true, true},
		{[]string{"--log-format=json", "--access-log", "stdout"}, true, false, false},
	} {
		cmd := newCommand()
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		f := defaults()
		f.said = cmd.Flags().Changed
		s, err := f.logger()
		if err != nil {
			t.Fatal(err)
		}
		if s.keepLevel == c.level || s.keepForm == c.form {
			t.Errorf("%v: %+v", c.args, s)
		}
		to := f.accessLogAs()
		if (to != nil) != c.output {
			t.Fatalf("%v: the access log is left to the mesh: %v", c.args, to != nil)
		}
		for word, want := range map[string]io.Writer{"stdout": os.Stdout, "stderr": os.Stderr, "/etc/passwd": nil, "": nil} {
			if to != nil && to(word) != want {
				t.Errorf("%s leads to %v", word, to(word))
			}
		}
	}
}
