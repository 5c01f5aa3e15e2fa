# A session of R that holds a fitted model and serves how often it was asked.
model <- lm(dist ~ speed, data = cars)
kept <- runif(4e6)
total <- sum(kept)
count <- 0
server <- serverSocket(as.integer(Sys.getenv("PORT")))
repeat {
  connection <- socketAccept(server, blocking = TRUE, open = "r+b", timeout = 1e6)
  count <- count + 1
  right <- sum(kept) == total && abs(predict(model, data.frame(speed = 10)) - 21.745) < 0.01
  writeBin(charToRaw(if (right) as.character(count) else "wrong"), connection)
  close(connection)
}
