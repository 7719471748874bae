package demo

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/test/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m, func() error { return goleak.Find() }) }
