package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weir-mesh/weir/test/netlab"
)

// inLab is set for processes that the scripts start, which are in the lab already.
const inLab = "WEIR_INIT_IN_SCRIPT"

func TestMain(m *testing.M) {
	if os.Getenv(inLab) == "" {
		if done, err := netlab.Reexec(); done || err != nil {
			if err != nil {
				os.Stderr.WriteString(err.Error() + "\n")
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	testscript.Main(m, map[string]func(){"weir-init": main})
}

// Each script has two hosts of its own, $APP and $PEER, as names of ip netns.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		// bpf: this is no user namespace, in which no programs can be loaded.
		Condition: func(cond string) (bool, error) {
			if cond != "bpf" {
				return false, fmt.Errorf("unknown condition %s", cond)
			}
			m, err := os.ReadFile("/proc/self/uid_map")
			return strings.Contains(string(m), "4294967295"), err
		},
		Setup: func(env *testscript.Env) error {
			lab, err := netlab.Open(t.Context(), netlab.Options{})
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := lab.Close(); err != nil {
					t.Error(err)
				}
			})
			for _, name := range []string{"APP", "PEER"} {
				h, err := lab.Host(map[string]string{"APP": "app", "PEER": "peer"}[name])
				if err != nil {
					return err
				}
				env.Setenv(name, h.Netns())
				env.Setenv(name+"4", h.Addr4().String())
			}
			env.Setenv(inLab, "1")
			return nil
		},
	})
}
