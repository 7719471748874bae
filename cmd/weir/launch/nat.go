package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// natTable is a table of nftables of our own: nobody else's rules are touched, and
// it goes as a whole. It is not shown by iptables-save.
const natTable = "weir_run"

// natRules let the runs reach what the machine reaches, under the machine's address.
func natRules(s subnet) string {
	return fmt.Sprintf(`table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %[2]s oifname != "%[3]s" masquerade
	}
}
`, natTable, s.Prefix, bridgeName)
}

// openNAT installs them. Whether the machine forwards at all is not weir's to
// change: a crash would leave it so.
func openNAT(ctx context.Context, s subnet) error {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return fmt.Errorf("--nat: %w", err)
	}
	if strings.TrimSpace(string(b)) != "1" {
		return errors.New("--nat: this machine forwards nothing; sysctl -w net.ipv4.ip_forward=1 allows it")
	}
	return nft(ctx, natRules(s))
}

// closeNAT removes them; that there are none is no error.
func closeNAT() error {
	return nft(context.Background(), fmt.Sprintf("table ip %[1]s\ndelete table ip %[1]s\n", natTable))
}

func nft(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("--nat: nft: %w\n%s", err, out)
	}
	return nil
}
