from splice.cli.main import main

main()
