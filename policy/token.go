package policy

import "time"

// JoinToken is what is kept of a join token: never the token itself.
type JoinToken struct {
	ID               string // names it; of no use to join
	Service          ServiceName
	Created, Expires time.Time
	Uses             int       // proxies that may join with it; 0 is any number
	Used             int       // that have, where Uses is not 0
	Revoked          time.Time // zero: it is not
}

// MaxTokenUses bounds JoinToken.Uses.
const MaxTokenUses = 10_000
