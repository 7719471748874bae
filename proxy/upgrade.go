package proxy

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/relay"
	"github.com/weir-mesh/weir/proxy/telemetry"
	"github.com/weir-mesh/weir/proxy/wsframe"
)

// upgrade is a pair of connections that stopped to speak HTTP.
type upgrade struct {
	client, upstream h1.Handed
	webSocket        bool
}

// newUpgrade takes the connections and what the request's Upgrade field asked for.
// Where that was more than one protocol it is not known which the server took,
// and the bytes are left alone.
func newUpgrade(asked string, client, upstream h1.Handed) *upgrade {
	return &upgrade{client, upstream, strings.EqualFold(asked, "websocket")}
}

// upgradeMetrics are the handles for connections that were upgraded. They live
// long, so they are told from those that carry requests.
type upgradeMetrics struct{ webSocket, other *telemetry.Connections }

func newUpgradeMetrics(r *telemetry.Registry, dir telemetry.Direction) upgradeMetrics {
	return upgradeMetrics{webSocket: r.Connections(dir, "websocket"), other: r.Connections(dir, "upgrade")}
}

// closePatience is how long each peer of a WebSocket is given to answer our Close
// when the proxy drains. Twice that is the most a drain waits for it.
const closePatience = time.Second

// relayUpgraded carries what follows an upgrade, and counts it no more with http,
// the connections of requests. ended, if not nil, is told of the end.
func (p *Proxy) relayUpgraded(lc *listen.Conn, u *upgrade, http *telemetry.Connections, ms *upgradeMetrics, ended func()) *relay.Session {
	http.Closed("upgraded", 0, 0)
	m, ws := ms.other, (*wsframe.Socket)(nil)
	client, upstream := u.client.Conn, u.upstream.Conn
	cfg := relay.Config{FromClient: u.client.Unread, FromUpstream: u.upstream.Unread, HalfClosedTimeout: halfClosed}
	if u.webSocket {
		m, ws = ms.webSocket, webSocket(lc, client, upstream, &cfg)
		client, upstream = ws.Ends()
	}
	m.Opened()
	return relay.Start(client, upstream, cfg, func(res relay.Result) {
		if ws != nil {
			ws.Ended()
		}
		if ended != nil {
			ended()
		}
		m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
	})
}

// webSocket has the frames followed, so that a drain can end the WebSocket in its
// own terms. What was read of the connections goes from cfg to it.
func webSocket(lc *listen.Conn, client, upstream loop.Stream, cfg *relay.Config) *wsframe.Socket {
	ws := wsframe.New(client, upstream, wsframe.Config{
		FromClient: cfg.FromClient, FromUpstream: cfg.FromUpstream,
		Draining: lc.Listener().Draining, Patience: closePatience, Reason: "the proxy shuts down",
		Mask: func() (key [4]byte) { binary.NativeEndian.PutUint32(key[:], rand.Uint32()); return key },
	})
	cfg.FromClient, cfg.FromUpstream = nil, nil
	return ws
}
