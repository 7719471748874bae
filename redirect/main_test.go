package redirect

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/test/netlab"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		os.Exit(child(what))
	}
	netlab.Main(m, func() error { return goleak.Find() })
}
