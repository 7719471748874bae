package redirect_test

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/weir-mesh/weir/redirect"
)

// A plan is text, and can be looked at before it is applied.
func ExampleNewPlan() {
	cfg := redirect.DefaultConfig()
	cfg.InboundPortsToIgnore, _ = redirect.ParsePortRanges("22")
	plan, err := redirect.NewPlan(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	var text strings.Builder
	_ = plan.Print(&text)
	for line := range strings.Lines(text.String()) {
		if strings.Contains(line, "WEIR_INBOUND") && strings.HasPrefix(line, "-A") {
			fmt.Print(line)
		}
	}
	// Output:
	// -A WEIR_INBOUND -p tcp -m multiport --dports 15000:15001,15006,15053 -m comment --comment "weir: ports of the proxy itself" -j RETURN
	// -A WEIR_INBOUND -p tcp -m multiport --dports 22 -m comment --comment "weir: ports to ignore" -j RETURN
	// -A WEIR_INBOUND -p tcp -m comment --comment "weir: all else to the inbound port" -j REDIRECT --to-ports 15006
	// -A WEIR_INBOUND -p tcp -m multiport --dports 15000:15001,15006,15053 -m comment --comment "weir: ports of the proxy itself" -j RETURN
	// -A WEIR_INBOUND -p tcp -m multiport --dports 22 -m comment --comment "weir: ports to ignore" -j RETURN
	// -A WEIR_INBOUND -p tcp -m comment --comment "weir: all else to the inbound port" -j REDIRECT --to-ports 15006
}

// What cannot be is refused by the name of its field.
func ExampleConfigError() {
	cfg := redirect.DefaultConfig()
	cfg.InboundPort = cfg.OutboundPort
	_, err := redirect.NewPlan(cfg)
	if wrong, ok := errors.AsType[*redirect.ConfigError](err); ok {
		fmt.Println(wrong.Field, "-", wrong.Problem)
	}
	// Output: InboundPort - 15001 is the OutboundPort too
}
