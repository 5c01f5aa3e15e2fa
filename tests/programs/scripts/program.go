// A server of goroutines and a ticker; it says how often it was asked.
package main

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	kept := make([]byte, 32<<20)
	kept[1<<20] = 7
	var count, ticks int64
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			atomic.AddInt64(&ticks, 1)
		}
	}()
	server, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	for {
		connection, err := server.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			if kept[1<<20] == 7 {
				fmt.Fprint(connection, atomic.AddInt64(&count, 1))
			}
			connection.Close()
		}()
	}
}
